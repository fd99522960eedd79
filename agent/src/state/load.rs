//! Reading the file at the start.

use std::collections::BTreeMap;

use redb::{Database, ReadableDatabase, ReadableTable, TableError};
use skep_proto::convert::{WireForm, decode};
use skep_proto::model::TaskId;
use skep_proto::model::session::{AssignedSpec, AssignedTask, ManagerPeer, StatusReport};
use skep_proto::model::view::{EndpointView, NetworkView, OverlayNetwork, Peer, ServiceView};
use tracing::error;

use super::Table;

/// What the file held.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// Index of the last set of assignments; 0 when there was none.
    pub index: u64,
    /// Something is missing: everything must be asked for again.
    pub incomplete: bool,
    /// Managers to ask.
    pub managers: Vec<ManagerPeer>,
    /// Assigned tasks; `true` for those that are only kept until they are gone.
    pub tasks: BTreeMap<TaskId, (AssignedTask, bool)>,
    /// Specs.
    pub specs: Vec<AssignedSpec>,
    /// Statuses that the managers may not have.
    pub statuses: BTreeMap<TaskId, StatusReport>,
    /// The cluster's network.
    pub view: NetworkView,
}

/// The file's format, or `None` when it is new.
pub(super) fn format(database: &Database) -> Result<Option<u64>, redb::Error> {
    number(database, "format")
}

/// Reads everything. A row that cannot be understood is left out, and everything is asked for again.
pub(super) fn load(database: &Database) -> Result<Loaded, redb::Error> {
    let mut reader = Reader { database, damaged: false };
    let specs = reader.values::<AssignedSpec>(Table::Specs)?;
    let tasks = reader
        .flagged::<AssignedTask>(Table::Tasks)?
        .into_iter()
        .map(|(gone, task)| (task.id, (task, gone != 0)))
        .collect();
    let statuses =
        reader.flagged::<StatusReport>(Table::Statuses)?.into_iter().map(|(_, report)| (report.task, report)).collect();
    let view = NetworkView {
        peers: reader.values::<Peer>(Table::Peers)?.into_iter().map(|peer| (peer.node, peer)).collect(),
        networks: reader.values::<OverlayNetwork>(Table::Networks)?.into_iter().map(|n| (n.id, n)).collect(),
        services: reader.values::<ServiceView>(Table::Services)?.into_iter().map(|s| (s.id, s)).collect(),
        endpoints: reader.values::<EndpointView>(Table::Endpoints)?.into_iter().map(|e| (e.task, e)).collect(),
    };
    let managers = reader.values::<ManagerPeer>(Table::Managers)?;
    let index = number(database, "index")?.unwrap_or(0);
    Ok(Loaded { index, incomplete: reader.damaged, managers, tasks, specs, statuses, view })
}

struct Reader<'a> {
    database: &'a Database,
    damaged: bool,
}

impl Reader<'_> {
    fn values<T: WireForm>(&mut self, table: Table) -> Result<Vec<T>, redb::Error> {
        let rows = rows(self.database, table)?;
        Ok(rows.iter().filter_map(|row| self.value(table, row)).collect())
    }

    /// Rows with a byte in front.
    fn flagged<T: WireForm>(&mut self, table: Table) -> Result<Vec<(u8, T)>, redb::Error> {
        let rows = rows(self.database, table)?;
        let split = rows.iter().map(|row| row.split_first().unwrap_or((&0, &[])));
        Ok(split.filter_map(|(byte, row)| Some((*byte, self.value(table, row)?))).collect())
    }

    fn value<T: WireForm>(&mut self, table: Table, row: &[u8]) -> Option<T> {
        match decode(row) {
            Ok(value) => Some(value),
            Err(error) => {
                error!(?table, error = %crate::chain(&error), "a row of the local state is damaged; all assignments are asked for again");
                self.damaged = true;
                None
            }
        }
    }
}

fn rows(database: &Database, table: Table) -> Result<Vec<Vec<u8>>, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(table.rows()) {
        Ok(rows) => rows.iter()?.map(|row| Ok(row?.1.value().to_vec())).collect(),
        Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn number(database: &Database, key: &str) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    let rows = match transaction.open_table(Table::Meta.rows()) {
        Ok(rows) => rows,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let row = rows.get(key.as_bytes())?;
    Ok(row.and_then(|row| row.value().try_into().ok().map(u64::from_be_bytes)))
}
