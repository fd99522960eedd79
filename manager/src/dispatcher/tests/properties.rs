//! Whatever changes, in whatever bursts: what an agent holds is what a fresh session would be told.

use proptest::prelude::*;
use skep_proto::model::session::Assignments;

use super::super::dirty::{Cell, Dirty, Routes};
use super::super::outlook::Outlook;
use super::super::ports::{Changes, TaskFacts};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    PutTask {
        handle: u32,
        service: u128,
        on: u128,
        networks: Vec<u128>,
        state: TaskState,
        desired: TaskState,
    },
    PlainContainer {
        handle: u32,
        on: u128,
        network: u128,
    },
    RemoveTask(u32),
    PutService {
        id: u128,
        networks: Vec<u128>,
        published: bool,
    },
    GoingService(u128),
    RemoveService(u128),
    PutNetwork {
        id: u128,
        allocated: bool,
    },
    PutNode {
        id: u128,
        known: bool,
    },
    RemoveNode(u128),
    /// Nodes are told.
    Tell,
    /// Routing happens, but between the two halves of telling comes this many more changes.
    Lag,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let states = proptest::sample::select(vec![
        TaskState::Pending,
        TaskState::Assigned,
        TaskState::Running,
        TaskState::Shutdown,
        TaskState::Failed,
    ]);
    let desired = proptest::sample::select(vec![TaskState::Ready, TaskState::Running, TaskState::Shutdown]);
    let networks =
        || proptest::collection::btree_set(0u128..3, 0..3).prop_map(|set| set.into_iter().collect::<Vec<_>>());
    let step = prop_oneof![
        6 => (0u32..6, 0u128..3, 1u128..3, networks(), states, desired).prop_map(
            |(handle, service, on, networks, state, desired)| Step::PutTask { handle, service, on, networks, state, desired }
        ),
        1 => (0u32..6, 1u128..3, 0u128..3).prop_map(|(handle, on, network)| Step::PlainContainer { handle, on, network }),
        2 => (0u32..6).prop_map(Step::RemoveTask),
        2 => (0u128..3, networks(), any::<bool>()).prop_map(|(id, networks, published)| Step::PutService { id, networks, published }),
        1 => (0u128..3).prop_map(Step::GoingService),
        1 => (0u128..3).prop_map(Step::RemoveService),
        1 => (0u128..3, any::<bool>()).prop_map(|(id, allocated)| Step::PutNetwork { id, allocated }),
        1 => (1u128..4, any::<bool>()).prop_map(|(id, known)| Step::PutNode { id, known }),
        1 => (2u128..4).prop_map(Step::RemoveNode),
        4 => Just(Step::Tell),
        1 => Just(Step::Lag),
    ];
    proptest::collection::vec(step, 1..40)
}

fn apply(store: &FakeStore, step: &Step) {
    match step.clone() {
        Step::PutTask { handle, service, on, networks, state, desired } => {
            // A position's task keeps its identity until it is removed; its service, addresses and node are then fixed.
            let known = store.read().tasks.get(&handle).cloned();
            if known.as_ref().is_some_and(|task| task.service.is_none()) {
                return;
            }
            let mut facts = known.unwrap_or_else(|| TaskFacts {
                id: TaskId(1000 + u128::from(handle) + 100 * u128::from(store.read().index)),
                ..task(handle, service, on, &networks)
            });
            facts.node = (state >= TaskState::Assigned).then_some(NodeId(on));
            (facts.state, facts.desired) = (state, desired);
            if !store.read().services.contains_key(&facts.service.unwrap()) {
                return; // No task outlives its service's record.
            }
            store.put_task(facts);
        }
        Step::PlainContainer { handle, on, network } => {
            let id = TaskId(1000 + u128::from(handle) + 100 * u128::from(store.read().index));
            let plain = TaskFacts { id, service: None, name: Some("box".into()), ..task(handle, 0, on, &[network]) };
            if !store.read().tasks.contains_key(&handle) {
                store.put_task(TaskFacts { state: TaskState::Running, ..plain });
            }
        }
        Step::RemoveTask(handle) => store.remove_task(handle),
        Step::PutService { id, networks, published } => {
            store.put_service(service(id, &networks, published.then_some(8080)));
        }
        Step::GoingService(id) => {
            if let Some(service) = store.read().services.get(&ServiceId(id)) {
                store.put_service(Service { pending_delete: true, ..(**service).clone() });
            }
        }
        Step::RemoveService(id) => {
            let handles: Vec<u32> = store.read().tasks_of_service(ServiceId(id)).iter().map(|t| t.handle).collect();
            handles.into_iter().for_each(|handle| store.remove_task(handle));
            store.remove_service(ServiceId(id));
        }
        Step::PutNetwork { id, allocated } => {
            let vni = network(id).vni.filter(|_| allocated);
            store.put_network(Network { vni, ..network(id) });
        }
        Step::PutNode { id, known } => {
            let description = if known { description(id) } else { NodeDescription::default() };
            store.put_node(Node { description, ..node(id) });
        }
        Step::RemoveNode(id) => store.remove_node(NodeId(id)),
        Step::Tell | Step::Lag => {}
    }
}

/// The session of node 1, by hand.
struct Told {
    store: Arc<FakeStore>,
    routes: Routes,
    watch: Box<dyn super::super::ports::ClusterWatch>,
    cell: Arc<Cell>,
    outlook: Outlook,
    held: Held,
}

impl Told {
    fn new(store: &Arc<FakeStore>) -> Self {
        let (cell, watch) = (Arc::new(Cell::default()), store.watch());
        cell.mark(|dirty| dirty.all = true);
        let mut routes = Routes::default();
        routes.insert(N1, cell.clone());
        Self { store: store.clone(), routes, watch, cell, outlook: Outlook::new(N1), held: Held::default() }
    }

    fn route(&mut self) {
        if let Some(changes) = futures_util::FutureExt::now_or_never(self.watch.next()) {
            self.routes.route(&changes.expect("the store is there"));
        }
    }

    fn tell(&mut self, between: impl FnOnce()) -> Option<Assignments> {
        let dirty = self.cell.take();
        let following = self.outlook.follow(&self.store.read(), &dirty);
        between();
        self.routes.subscribe(N1, &following.more, &following.fewer);
        let set = self.outlook.step(&self.store.read(), &dirty, &following, &mut |_, _| false);
        set.iter().for_each(|set| self.held.apply(set));
        set
    }
}

fn fresh(store: &FakeStore) -> Held {
    let mut outlook = Outlook::new(N1);
    let dirty = Dirty { all: true, ..Dirty::default() };
    let view = store.read();
    let following = outlook.follow(&view, &dirty);
    let mut held = Held::default();
    held.apply(&outlook.step(&view, &dirty, &following, &mut |_, _| false).expect("the first set is always sent"));
    held
}

#[test]
fn a_task_that_goes_unheard_while_its_service_is_dropped_is_removed() {
    let store = FakeStore::new();
    store.put_service(service(1, &[], Some(8080)));
    let mesh = Some("100.64.2.5".parse().unwrap());
    store.put_task(TaskFacts { mesh, state: TaskState::Running, ..task(1, 1, 2, &[]) });
    let mut told = Told::new(&store);
    told.tell(|| {});
    assert_eq!(told.held.view.endpoints.len(), 1);
    store.put_service(service(1, &[], None));
    told.route();
    told.tell(|| store.remove_task(1));
    told.route();
    told.tell(|| {});
    assert_eq!(told.held.view, fresh(&store).view);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn differences_add_up_to_what_a_fresh_session_is_told(steps in steps()) {
        let store = FakeStore::new();
        store.put_node(node(1));
        let mut told = Told::new(&store);
        let mut steps = steps.iter();
        while let Some(step) = steps.next() {
            apply(&store, step);
            match step {
                Step::Tell => { told.route(); told.tell(|| {}); }
                // The store moves on between the two views of a step, unheard.
                Step::Lag => { told.route(); told.tell(|| steps.by_ref().take(3).for_each(|step| apply(&store, step))); }
                _ => {}
            }
        }
        for _ in 0..4 {
            told.route();
            told.tell(|| {});
        }
        let mut expected = fresh(&store);
        expected.specs = told.held.specs.clone(); // Specs stay with the session.
        prop_assert_eq!(&told.held, &expected);
        // Settled: nothing is left to tell.
        told.route();
        prop_assert_eq!(told.tell(|| {}), None);
        // And after falling behind, everything is looked at and nothing is told twice.
        told.routes.route(&Changes::All);
        prop_assert_eq!(told.tell(|| {}), None);
    }
}
