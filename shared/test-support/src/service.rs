//! A service as a process: started with a configuration, asked over HTTP, ended by signal.

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long a process may take to start or end.
const LIMIT: Duration = Duration::from_secs(20);

/// A running service; killed when dropped.
#[derive(Debug)]
pub struct ServiceProcess {
    child: Child,
    admin: SocketAddr,
    dir: TempDir,
}

impl ServiceProcess {
    /// Starts the program with this configuration, whose `runtime` is given an address file, and
    /// waits until its admin listener is there.
    pub fn start(program: &Path, config: Value) -> Result<Self> {
        Self::start_with(program, config, &[])
    }

    /// The same with variables in its environment.
    pub fn start_with(
        program: &Path,
        config: Value,
        environment: &[(&str, &Path)],
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address_file = dir.path().join("admin");
        let file = dir.path().join("config.json");
        write_config(dir.path(), config)?;
        let mut child = Command::new(program)
            .arg("--config")
            .arg(&file)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log"))?)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let until = Instant::now() + LIMIT;
        loop {
            let address = fs::read_to_string(&address_file).ok();
            if let Some(admin) = address.and_then(|text| text.trim().parse().ok()) {
                return Ok(Self { child, admin, dir });
            }
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                let _ = child.kill();
                let log = fs::read_to_string(dir.path().join("log"))?;
                bail!("{} did not start ({ended:?}):\n{log}", program.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Replaces the configuration file of the running process; like [`Self::start`], it adds where
    /// the address is written.
    pub fn configure(&self, config: Value) -> Result<()> {
        write_config(self.dir.path(), config)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Status code and body of a path of the admin listener.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: canopy\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Waits until `/ready` answers with this status.
    pub fn wait_status(&self, status: u16) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let (seen, body) = self.get("/ready?verbose")?;
            if seen == status {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("/ready is {seen}, not {status}:\n{body}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn end(self) -> Result<ExitStatus> {
        self.end_by(Signal::SIGTERM)
    }

    /// Sends SIGTERM; an error with its log when it takes longer to end than `limit`.
    pub fn end_within(mut self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        while begun.elapsed() < LIMIT.max(2 * limit) {
            if self.child.try_wait()?.is_some() {
                let took = begun.elapsed();
                if took < limit {
                    return Ok(());
                }
                bail!("took {took:?} to end, where {limit:?} are enough:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("still running {:?} after SIGTERM:\n{}", begun.elapsed(), self.log())
    }

    /// Sends a signal that ends it and waits for the end.
    pub fn end_by(mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("still running {LIMIT:?} after {signal}:\n{}", self.log())
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes `config.json`, whole at every moment.
fn write_config(dir: &Path, mut config: Value) -> Result<()> {
    if let Some(fields) = config.as_object_mut() {
        let runtime = fields.entry("runtime").or_insert_with(|| json!({}));
        if let Some(runtime) = runtime.as_object_mut() {
            runtime.insert("address_file".into(), json!(dir.join("admin")));
        }
    }
    let new = dir.join("config.json.new");
    fs::write(&new, config.to_string())?;
    fs::rename(&new, dir.join("config.json"))?;
    Ok(())
}

/// Runs the program with `--check` on this configuration.
pub fn check(program: &Path, config: &str) -> Result<Output> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.json");
    fs::write(&file, config)?;
    Ok(Command::new(program).arg("--check").arg("--config").arg(&file).output()?)
}
