//! The supervisor that `up` leaves behind: starts the daemons, starts those that die again after a pause, stops
//! all of them in order.

use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::usage::Failure;
use crate::wanted::{DaemonState, State, Wanted, lock_supervisor};
use anyhow::Result;
use ember_rt::select::{Either, select};
use ember_rt::{Rt, watch};
use ember_types::Instant;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::process::Child;
use std::time::Duration;

/// How often processes and wishes are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Pause before a daemon that died is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// How long a daemon may take to stop before it is killed: a mount that is busy, a metadata export.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Tries to get the lock of the supervisor, and the pause between them.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// One daemon under supervision.
#[derive(Default)]
struct Watched {
    /// Set for processes that this supervisor started.
    child: Option<Child>,
    /// Set while it runs; an adopted one has no child.
    pid: Option<u32>,
    ended: Option<String>,
    restarts: u64,
    /// When it may be started (again).
    start_at: Instant,
    started_once: bool,
    stopping: bool,
}

struct Supervisor {
    rt: Rt,
    dir: DataDir,
    wanted: Wanted,
    watched: BTreeMap<Daemon, Watched>,
    told: State,
}

/// Runs until SIGTERM or SIGINT, then stops every daemon in order: mounts, storage, control.
pub(crate) async fn run(rt: Rt, dir: DataDir) -> Result<()> {
    let mut lock = lock_supervisor(&dir)?;
    for _ in 0..LOCK_TRIES {
        if lock.is_some() {
            break;
        }
        // Whoever asks whether there is a supervisor has the lock for a moment.
        rt.sleep(LOCK_PAUSE).await;
        lock = lock_supervisor(&dir)?;
    }
    let Some(_lock) = lock else {
        return Err(Failure::refused(format!("a supervisor of {} runs already", dir.root().display())));
    };
    let mut shutdown = ember_daemon::shutdown_signal(&rt)?;
    let wanted = Wanted::load(&dir)?;
    let mut supervisor =
        Supervisor { rt: rt.clone(), dir, wanted, watched: BTreeMap::new(), told: State::default() };
    loop {
        supervisor.tick()?;
        if let Either::Left(_) = select(stopped(&mut shutdown), rt.sleep(TICK)).await {
            break;
        }
    }
    supervisor.stop_all().await
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    while !*shutdown.borrow() {
        if shutdown.changed().await.is_err() {
            return;
        }
    }
}

impl Supervisor {
    fn tick(&mut self) -> Result<()> {
        let wanted = Wanted::load(&self.dir).unwrap_or_else(|_| self.wanted.clone());
        let new_round = wanted.round > self.wanted.round;
        self.wanted = wanted;
        let daemons = self.wanted.daemons();
        for daemon in &daemons {
            self.watched.entry(daemon.clone()).or_default();
        }
        let now = self.rt.now();
        for (daemon, watched) in &mut self.watched {
            watched.look(&self.dir, daemon, now);
            if new_round && watched.pid.is_none() {
                (watched.start_at, watched.ended, watched.started_once) = (now, None, false);
            }
            let is_wanted = daemons.contains(daemon);
            let allowed = self.wanted.restart || !watched.started_once;
            if is_wanted && watched.pid.is_none() && allowed && now >= watched.start_at {
                watched.start(&self.dir, daemon, now);
            } else if let (false, false, Some(pid)) = (is_wanted, watched.stopping, watched.pid) {
                // Once: a second SIGTERM ends a daemon without its farewells.
                watched.stopping = true;
                process::signal(pid, Signal::TERM);
            }
        }
        self.watched.retain(|daemon, watched| daemons.contains(daemon) || watched.pid.is_some());
        self.tell()
    }

    fn tell(&mut self) -> Result<()> {
        let daemons = self.watched.iter().map(|(daemon, watched)| DaemonState {
            name: daemon.name(),
            pid: watched.pid,
            ended: watched.ended.clone(),
            restarts: watched.restarts,
        });
        let state = State { round: self.wanted.round, daemons: daemons.collect() };
        if state != self.told {
            state.save(&self.dir)?;
            self.told = state;
        }
        Ok(())
    }

    async fn stop_all(&mut self) -> Result<()> {
        for class in 0..3 {
            let members: Vec<Daemon> =
                self.watched.keys().filter(|d| stop_class(d) == class).cloned().collect();
            self.stop(&members).await?;
        }
        Ok(())
    }

    async fn stop(&mut self, members: &[Daemon]) -> Result<()> {
        let limit = self.rt.now() + STOP_LIMIT;
        let mut killed = false;
        let mut asked = false;
        loop {
            let now = self.rt.now();
            let mut running = 0;
            for daemon in members {
                let Some(watched) = self.watched.get_mut(daemon) else { continue };
                watched.look(&self.dir, daemon, now);
                let Some(pid) = watched.pid else { continue };
                running += 1;
                if !asked {
                    process::signal(pid, Signal::TERM);
                } else if now >= limit && !killed {
                    tracing::warn!(daemon = daemon.title(), "does not stop: killed");
                    process::signal(pid, Signal::KILL);
                }
            }
            killed |= now >= limit;
            asked = true;
            self.tell()?;
            if running == 0 {
                return Ok(());
            }
            self.rt.sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Mounts stop first, control last.
fn stop_class(daemon: &Daemon) -> u8 {
    match daemon {
        Daemon::Mount(_) => 0,
        Daemon::Storage(_) => 1,
        Daemon::Control => 2,
    }
}

impl Watched {
    /// Notices a daemon that ended, and one that an earlier supervisor left running.
    fn look(&mut self, dir: &DataDir, daemon: &Daemon, now: Instant) {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => return,
                Ok(Some(status)) => self.ended_with(daemon, status.to_string(), now),
                Err(error) => self.ended_with(daemon, error.to_string(), now),
            }
            return;
        }
        match self.pid {
            Some(pid) if !process::is_daemon(dir, daemon, pid) || !process::is_alive(pid) => {
                self.ended_with(daemon, "ended".into(), now);
            }
            Some(_) => {}
            None => {
                self.pid = process::find(dir, daemon).filter(|&pid| process::is_alive(pid));
                self.started_once |= self.pid.is_some();
            }
        }
    }

    fn ended_with(&mut self, daemon: &Daemon, how: String, now: Instant) {
        tracing::warn!(daemon = daemon.title(), how, "ended");
        (self.child, self.pid, self.ended, self.stopping) = (None, None, Some(how), false);
        self.start_at = now + RESTART_PAUSE;
    }

    fn start(&mut self, dir: &DataDir, daemon: &Daemon, now: Instant) {
        self.restarts += u64::from(self.started_once);
        self.started_once = true;
        match process::start(dir, daemon) {
            Ok(child) => {
                tracing::info!(daemon = daemon.title(), pid = child.id(), "started");
                self.pid = Some(child.id());
                self.child = Some(child);
            }
            Err(error) => {
                tracing::error!(daemon = daemon.title(), "does not start: {error:#}");
                self.ended = Some(format!("does not start: {error:#}"));
                self.start_at = now + RESTART_PAUSE;
            }
        }
    }
}
