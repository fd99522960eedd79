//! What a service waits for before its tasks are made.
//!
//! Dependencies are written in a label of the service, [`LABEL`], so that every client can set and show them: items
//! `SERVICE:CONDITION`, joined by commas. SERVICE is a name in the cluster. A `?` after the condition means that a service
//! that does not exist is not waited for.

use super::Labels;

/// The label that holds them.
pub const LABEL: &str = "skep.depends-on";
/// Dependencies of one service at most.
pub const MOST: usize = 256;

/// One service that another waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependency {
    /// Its name in the cluster.
    pub service: String,
    /// What must hold.
    pub condition: Condition,
    /// A service that does not exist is waited for, too.
    pub is_required: bool,
}

/// What must hold of a service (Compose Specification, `depends_on.condition`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// As many tasks run as are wanted, or did once.
    Started,
    /// Likewise; a task with a health check runs when it is healthy, so the tasks of the other service must have one.
    Healthy,
    /// It is a job, and has completed.
    CompletedSuccessfully,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 3] = [Self::Started, Self::Healthy, Self::CompletedSuccessfully];

    /// Compose's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "service_started",
            Self::Healthy => "service_healthy",
            Self::CompletedSuccessfully => "service_completed_successfully",
        }
    }

    /// The condition of that name.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == word)
    }
}

/// The value of the label.
pub fn write(dependencies: &[Dependency]) -> String {
    let item =
        |d: &Dependency| format!("{}:{}{}", d.service, d.condition.as_str(), if d.is_required { "" } else { "?" });
    dependencies.iter().map(item).collect::<Vec<_>>().join(",")
}

/// The dependencies that labels say.
///
/// # Errors
/// The item that cannot be understood, and what is expected.
pub fn read(labels: &Labels) -> Result<Vec<Dependency>, String> {
    let Some(value) = labels.get(LABEL).filter(|value| !value.trim().is_empty()) else { return Ok(Vec::new()) };
    let mut dependencies = Vec::new();
    for item in value.split(',').map(str::trim) {
        let (required, is_required) = item.strip_suffix('?').map_or((item, true), |rest| (rest, false));
        let parts = required.rsplit_once(':').and_then(|(name, word)| Some((name, Condition::named(word)?)));
        let Some((service, condition)) = parts.filter(|(name, _)| !name.is_empty()) else {
            let words: Vec<&str> = Condition::ALL.iter().map(|c| c.as_str()).collect();
            return Err(format!(
                "the label {LABEL} has items SERVICE:CONDITION with a condition of {}, not {item:?}",
                words.join(", ")
            ));
        };
        dependencies.push(Dependency { service: service.to_owned(), condition, is_required });
    }
    if dependencies.len() > MOST {
        return Err(format!("the label {LABEL} has {} items; at most {MOST} are read", dependencies.len()));
    }
    Ok(dependencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let all = [
            Dependency { service: "demo_db".into(), condition: Condition::Healthy, is_required: true },
            Dependency { service: "demo_mail".into(), condition: Condition::Started, is_required: false },
        ];
        let value = write(&all);
        assert_eq!(value, "demo_db:service_healthy,demo_mail:service_started?");
        assert_eq!(read(&Labels::from([(LABEL.to_owned(), value)])), Ok(all.to_vec()));
        assert_eq!(read(&Labels::new()), Ok(Vec::new()));
        for wrong in ["x", "x:y", ":service_started", "a:service_started,,"] {
            assert!(read(&Labels::from([(LABEL.to_owned(), wrong.to_owned())])).is_err(), "{wrong}");
        }
    }
}
