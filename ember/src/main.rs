//! `ember`: one binary for the whole of EmberFS. Commands of people (`up`, `down`, `status`, `mount`, …) and the
//! daemons themselves (`control`, `storage`, `mount --foreground`) are its sub-commands.
#![forbid(unsafe_code)]

mod cluster;
mod commands;
mod daemons;
mod exports;
mod health;
mod paths;
mod process;
mod report;
mod settings;
mod supervisor;
mod usage;
mod wanted;

use clap::{Args, Parser, Subcommand};
use paths::DataDir;
use std::path::PathBuf;
use std::process::ExitCode;

const _: () = assert!(
    !ember_types::mutants::COMPILED,
    "the product must not contain planted bugs: build ember-sim apart from it (-p ember-sim)"
);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "ember", version, about = "EmberFS: a parallel file system for AI")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Where the cluster is.
#[derive(Args, Clone)]
struct Data {
    /// Data directory of the cluster on this machine.
    #[arg(long = "data", value_name = "DIR", default_value = "./ember-data")]
    data: PathBuf,
}

impl Data {
    fn dir(&self) -> anyhow::Result<DataDir> {
        DataDir::new(&self.data)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine; create it on first use.
    Up(UpArgs),
    /// Stop every process of the cluster, in order. Data stay.
    Down {
        #[command(flatten)]
        data: Data,
    },
    /// Delete the cluster and all its data, and give the space back.
    Destroy {
        #[command(flatten)]
        data: Data,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
    /// Show health, nodes, targets, chains. Exit code 0 OK, 1 WARN, 2 ERR, 3 no such cluster.
    Status {
        #[command(flatten)]
        data: Data,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Mount the cluster's file system.
    Mount {
        #[command(flatten)]
        data: Data,
        /// An empty directory.
        #[arg(value_name = "DIR")]
        point: PathBuf,
        /// Serve the mount in this process, until SIGTERM.
        #[arg(long)]
        foreground: bool,
    },
    /// Unmount.
    Umount {
        #[command(flatten)]
        data: Data,
        /// The mount point.
        #[arg(value_name = "DIR")]
        point: PathBuf,
    },
    /// Configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Storage targets.
    #[command(subcommand)]
    Target(TargetCommand),
    /// The metadata store.
    #[command(subcommand)]
    Meta(MetaCommand),
    /// Run mgmtd and meta in this process.
    Control {
        #[command(flatten)]
        data: Data,
    },
    /// Run a storage node in this process.
    Storage {
        #[command(flatten)]
        data: Data,
        /// Which node of this machine, counted from 1.
        #[arg(long)]
        node: u32,
    },
    /// Measure the native client on one file.
    #[command(hide = true)]
    Bench {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        args: commands::bench::BenchArgs,
    },
    /// Keep the daemons of this machine running, until SIGTERM.
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Args)]
struct UpArgs {
    #[command(flatten)]
    data: Data,
    /// Mount the file system on this empty directory.
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Storage processes (3 for a new cluster).
    #[arg(long, value_name = "N")]
    storage_nodes: Option<u32>,
    /// Replicas of each chunk, on different storage processes (3 for a new cluster).
    #[arg(long, value_name = "R")]
    replicas: Option<u32>,
    /// Return when the cluster is ready and leave it running.
    #[arg(long)]
    detach: bool,
    /// Leave a daemon that dies dead.
    #[arg(long)]
    no_restart: bool,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the settings of all daemons as TOML with comments.
    Show {
        #[command(flatten)]
        data: Data,
        /// The defaults instead of this cluster's settings.
        #[arg(long)]
        defaults: bool,
    },
}

#[derive(Subcommand)]
enum TargetCommand {
    /// Compare all replicas of all chains byte by byte, online. Exit code 0 if they are equal.
    VerifyReplicas {
        #[command(flatten)]
        data: Data,
    },
    /// Check the files of a target whose process is stopped.
    Fsck {
        #[command(flatten)]
        data: Data,
        /// Number of the target.
        target: u64,
    },
    /// Print where the bytes of a target's chunks lie: file, offset, length, chunk.
    #[command(hide = true)]
    Map {
        #[command(flatten)]
        data: Data,
        /// Number of the target.
        target: u64,
    },
    /// Have targets read and checked now, and what is damaged repaired; `ember status` shows how far it is. With
    /// `--wait` exit code 0 if all is sound or repaired.
    Scrub {
        #[command(flatten)]
        data: Data,
        /// Number of the target.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        target: Option<u64>,
        /// Every target.
        #[arg(long)]
        all: bool,
        /// Return when it is done, and say what was found.
        #[arg(long)]
        wait: bool,
    },
    /// Fill a target anew from the other replicas: its old content counts as lost.
    Replace {
        #[command(flatten)]
        data: Data,
        /// Number of the target.
        target: u64,
    },
}

#[derive(Subcommand)]
enum MetaCommand {
    /// Write all metadata of a stopped cluster to a file.
    Export {
        #[command(flatten)]
        data: Data,
        /// The file to make.
        file: PathBuf,
    },
    /// Replace the metadata of a stopped cluster by an export; the old store is kept aside.
    Import {
        #[command(flatten)]
        data: Data,
        /// The export; the newest one if none is named.
        file: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { usage::USAGE } else { usage::OK });
        }
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report::error(&format!("{error:#}"));
            ExitCode::from(usage::code_of(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Up(args) => commands::up::run(&commands::up::Options {
            dir: args.data.dir()?,
            mount: args.mount,
            storage_nodes: args.storage_nodes,
            replicas: args.replicas,
            detach: args.detach,
            restart: !args.no_restart,
        }),
        Command::Down { data } => commands::down::run(&data.dir()?),
        Command::Destroy { data, yes } => commands::down::destroy(&data.dir()?, yes),
        Command::Status { data, json } => commands::status::run(&data.dir()?, json),
        Command::Mount { data, point, foreground: true } => daemons::mount::run(&data.dir()?, &point),
        Command::Mount { data, point, foreground: false } => commands::mount::mount(&data.dir()?, &point),
        Command::Umount { data, point } => commands::mount::umount(&data.dir()?, &point),
        Command::Config(ConfigCommand::Show { data, defaults }) => {
            commands::config::show(&data.dir()?, defaults)
        }
        Command::Target(TargetCommand::VerifyReplicas { data }) => {
            commands::target::verify_replicas(&data.dir()?)
        }
        Command::Target(TargetCommand::Fsck { data, target }) => commands::target::fsck(&data.dir()?, target),
        Command::Target(TargetCommand::Map { data, target }) => commands::target::map(&data.dir()?, target),
        Command::Target(TargetCommand::Scrub { data, target, wait, .. }) => {
            commands::scrub::run(&data.dir()?, target, wait)
        }
        Command::Target(TargetCommand::Replace { data, target }) => {
            commands::target::replace(&data.dir()?, target)
        }
        Command::Meta(MetaCommand::Export { data, file }) => commands::meta::export(&data.dir()?, &file),
        Command::Meta(MetaCommand::Import { data, file }) => {
            commands::meta::import(&data.dir()?, file.as_deref())
        }
        Command::Control { data } => daemons::control::run(&data.dir()?),
        Command::Storage { data, node } => daemons::storage::run(&data.dir()?, node),
        Command::Bench { data, args } => commands::bench::run(&data.dir()?, &args),
        Command::Supervise { data } => daemons::supervise(&data.dir()?),
    }
}
