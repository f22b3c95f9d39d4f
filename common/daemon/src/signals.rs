//! SIGTERM and SIGINT.

use ember_rt::watch;
use tokio::signal::unix::{SignalKind, signal};

/// Watches for SIGTERM and SIGINT on the calling reactor: the value turns `true` at the first one. A second one
/// ends the process at once with exit code 130.
pub fn shutdown_signal(rt: &ember_rt::Rt) -> std::io::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = watch::channel(false);
    rt.spawn("signals", async move {
        for round in 0_u32.. {
            ember_rt::select::select(terminate.recv(), interrupt.recv()).await;
            if round > 0 {
                std::process::exit(130);
            }
            tracing::info!("shutting down");
            sender.send(true);
        }
    });
    Ok(receiver)
}
