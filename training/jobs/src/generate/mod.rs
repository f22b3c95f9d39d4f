//! `ember-train generate`: text from a checkpoint, with the keys of what was read kept in EmberFS.

mod decoder;
mod pages;

use crate::checkpoint::{self, Checkpoint};
use crate::data::check_path;
use crate::model::VOCABULARY;
use crate::model::numbers::Random;
use anyhow::{Context, Result, ensure};
use decoder::Decoder;
use ember_flashmla::PAGE;
use ember_native::FileSystem;
use pages::{Key, Pages};
use std::io::Write;
use std::path::PathBuf;

/// `ember-train generate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Data directory of the cluster, as given to `ember up`.
    #[arg(long, value_name = "DIR")]
    cluster: PathBuf,
    /// Directory in EmberFS that `ember-train run` wrote checkpoints to.
    #[arg(long, value_name = "PATH")]
    checkpoints: String,
    /// Step of the checkpoint; the newest one if none is given.
    #[arg(long)]
    step: Option<u64>,
    /// Directory in EmberFS for pages of keys. They are found again by all who decode with the same weights; the
    /// directory may be removed at any time.
    #[arg(long, value_name = "PATH")]
    pages: String,
    /// Text to go on from.
    #[arg(long)]
    prompt: String,
    /// Bytes to add.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// 0 takes the likeliest byte, 1 draws by the model's probabilities.
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Where the drawing begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print a JSON object instead of the text.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(serde::Serialize)]
struct Outcome {
    text: String,
    /// Of the prompt.
    prompt_tokens: usize,
    /// Of those, how many needn't be computed, because their pages were in EmberFS.
    found_tokens: usize,
    pages_read: usize,
    pages_written: usize,
}

/// The next byte.
fn draw(logits: &[f32], temperature: f32, random: &mut Random) -> u8 {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    if temperature == 0.0 {
        return logits.iter().position(|x| *x == most).unwrap_or(0) as u8;
    }
    let weights: Vec<f32> = logits.iter().map(|x| ((x - most) / temperature).exp()).collect();
    let mut at = random.unit() as f32 * weights.iter().sum::<f32>();
    for (byte, weight) in weights.iter().enumerate() {
        at -= weight;
        if at < 0.0 {
            return byte as u8;
        }
    }
    (VOCABULARY - 1) as u8
}

pub(crate) fn run(args: &Args) -> Result<()> {
    check_path("--checkpoints", &args.checkpoints)?;
    check_path("--pages", &args.pages)?;
    ensure!(!args.prompt.is_empty(), "--prompt has no text");
    ensure!(
        args.temperature >= 0.0 && args.temperature.is_finite(),
        "--temperature: {} is no number from 0 on",
        args.temperature
    );
    let fs = FileSystem::connect(&args.cluster, "ember-train generate")?;
    let newest = || {
        let steps = checkpoint::steps(&fs, &args.checkpoints)?;
        steps.last().copied().with_context(|| format!("there is no checkpoint in {}", args.checkpoints))
    };
    let step = args.step.map_or_else(newest, Ok)?;
    let mut decoder = Decoder::load(&Checkpoint::open(&fs, &args.checkpoints, step)?)?;
    let pages = Pages::open(fs, &args.pages, decoder.page_numbers())?;
    let mut session = Session::begin(&mut decoder, pages, args.prompt.as_bytes())?;
    let mut random = Random::named(args.seed, "draw");
    let mut text = Vec::with_capacity(args.tokens);
    let mut out = std::io::stdout();
    while text.len() < args.tokens {
        let byte = draw(&session.logits, args.temperature, &mut random);
        text.push(byte);
        if !args.json {
            out.write_all(&[byte])?;
            out.flush()?;
        }
        if text.len() < args.tokens {
            session.read(&[byte])?;
        }
    }
    let outcome = session.end(args.prompt.len(), text)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&outcome)?)?;
    } else {
        writeln!(out)?;
        eprintln!(
            "{} of {} bytes of the prompt were found in EmberFS; {} pages read, {} written",
            outcome.found_tokens, outcome.prompt_tokens, outcome.pages_read, outcome.pages_written
        );
    }
    Ok(())
}

/// Gives the decoder the pages that the tokens of page `next` see, if all are in EmberFS.
fn pages_before(decoder: &mut Decoder, pages: &mut Pages, keys: &[Key], next: usize) -> Result<bool> {
    let mut seen = Vec::new();
    for page in (next + 1).saturating_sub(decoder.window())..next {
        let Some(numbers) = pages.load(&keys[page + 1])? else { return Ok(false) };
        seen.push((page, numbers));
    }
    seen.iter().for_each(|(page, numbers)| decoder.take(*page, numbers));
    Ok(true)
}

/// A text that is being read and written.
struct Session<'a> {
    decoder: &'a mut Decoder,
    pages: Pages,
    /// Name of the page before the one that is being filled.
    key: Key,
    /// Tokens of the page that is being filled.
    open: Vec<u8>,
    found: usize,
    logits: Vec<f32>,
}

impl<'a> Session<'a> {
    /// Reads the prompt, as far as its pages aren't in EmberFS.
    fn begin(decoder: &'a mut Decoder, mut pages: Pages, prompt: &[u8]) -> Result<Self> {
        let mut keys = vec![Key::first(decoder.identity())];
        for page in prompt.chunks_exact(PAGE) {
            keys.push(keys[keys.len() - 1].then(page));
        }
        // One token at least is computed: its logits are needed.
        let mut whole = (prompt.len() - 1) / PAGE;
        while whole > 0 && !pages_before(decoder, &mut pages, &keys, whole)? {
            whole -= 1;
        }
        decoder.go_to(whole * PAGE);
        let key = keys.swap_remove(whole);
        let mut session =
            Self { decoder, pages, key, open: Vec::new(), found: whole * PAGE, logits: Vec::new() };
        session.read(&prompt[whole * PAGE..])?;
        Ok(session)
    }

    /// Reads some tokens; pages that become full go to EmberFS.
    fn read(&mut self, mut tokens: &[u8]) -> Result<()> {
        while !tokens.is_empty() {
            let (now, later) = tokens.split_at(tokens.len().min(PAGE - self.open.len()));
            self.logits = self.decoder.advance(now)?;
            self.open.extend_from_slice(now);
            if self.open.len() == PAGE {
                self.key = self.key.then(&self.open);
                self.open.clear();
                self.pages.store(&self.key, self.decoder.last_page())?;
            }
            tokens = later;
        }
        Ok(())
    }

    fn end(self, prompt_tokens: usize, text: Vec<u8>) -> Result<Outcome> {
        let (pages_read, pages_written) = self.pages.end()?;
        Ok(Outcome {
            text: String::from_utf8_lossy(&text).into_owned(),
            prompt_tokens,
            found_tokens: self.found,
            pages_read,
            pages_written,
        })
    }
}
