//! Processes of a container, as `ps -ef` shows them.

use std::fs;
use std::path::Path;

use skep_proto::model::ContainerId;

use super::{ContainerError, Containers};

/// Clock ticks per second in /proc (`_SC_CLK_TCK`): 100 on every Linux machine.
const TICKS: u64 = 100;

impl Containers {
    /// Titles, then a row for each process.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when it does not run.
    pub fn top(&self, id: ContainerId) -> Result<(Vec<String>, Vec<Vec<String>>), ContainerError> {
        let entry = self.entry(id)?;
        if entry.state().pid == 0 {
            return Err(ContainerError::Conflict(format!("Container {id} is not running")));
        }
        let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned).to_vec();
        let mut pids = self.inner.cgroups.pids(&id.to_string());
        pids.sort_unstable();
        // One that ended meanwhile has no row.
        Ok((titles, pids.into_iter().filter_map(row).collect()))
    }
}

fn row(pid: u32) -> Option<Vec<String>> {
    let dir = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let command = fs::read(dir.join("cmdline")).ok()?;
    row_of(pid, &status, &stat, &command, uptime.split('.').next()?.parse().ok()?)
}

/// Fields as proc(5) numbers them; the name in parentheses may hold anything.
fn row_of(pid: u32, status: &str, stat: &str, command: &[u8], uptime: u64) -> Option<Vec<String>> {
    let name = stat.split_once('(')?.1.rsplit_once(')')?.0;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<u64>().ok());
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().nth(1)?;
    let cpu = (number(14)? + number(15)?) / TICKS;
    let age = uptime.saturating_sub(number(22)? / TICKS);
    let share = (cpu * 100).checked_div(age).unwrap_or(0).min(99);
    let terminal = match number(7)? {
        0 => "?".to_owned(),
        // Device number: major in bits 8 to 19; 136 are terminals of devpts.
        device => format!("pts/{}", device & 0xff),
    };
    let started = jiff::Timestamp::now() - std::time::Duration::from_secs(age);
    let started = started.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M").to_string();
    let words = command.split(|b| *b == 0).filter(|w| !w.is_empty()).map(String::from_utf8_lossy);
    let words = words.collect::<Vec<_>>().join(" ");
    Some(vec![
        uid.to_owned(),
        pid.to_string(),
        fields.get(1)?.to_string(),
        share.to_string(),
        started,
        terminal,
        format!("{:02}:{:02}:{:02}", cpu / 3600, cpu / 60 % 60, cpu % 60),
        if words.is_empty() { format!("[{name}]") } else { words },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_columns_of_ps() {
        let stat = "42 (a b) c) S 7 42 42 34817 42 0 0 0 0 0 6100 0 0 0 20 0 1 0 1000 0 0";
        let row = row_of(42, "Name:\tx\nUid:\t5\t33\t5\t5\n", stat, b"sleep\x001d\0", 610).unwrap();
        assert_eq!(&row[..4], ["33", "42", "7", "10"]);
        assert_eq!(&row[5..], ["pts/1", "00:01:01", "sleep 1d"]);
        assert_eq!(row_of(1, "", "garbage", b"", 0), None);
    }
}
