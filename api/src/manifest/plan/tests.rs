use serde_json::json;

use super::*;
use crate::manifest::fake::{self, FakeDisk};

fn wanted(text: &str) -> Wanted {
    let stack = fake::read(&[("stack.yml", text)], &fake::options(), &FakeDisk::default());
    Wanted::from(&stack.unwrap_or_else(|p| panic!("{p}")))
}

/// The cluster after the plan was carried out, and what the apply remembers.
fn carried_out(plan: &Plan, wanted: &Wanted, mut observed: Observed) -> Observed {
    for step in &plan.steps {
        match step.clone() {
            Step::MakeNetwork { name, body } => {
                observed.networks.insert(name, NetworkSeen { id: "n".into(), shown: body });
            }
            Step::MakeFile { kind, name, file } => {
                let same_as = Some(wanted.files[file].name.clone());
                observed.files.push(FileSeen { kind, id: name.clone(), name, same_as, is_ours: true });
            }
            Step::MakeService { name, spec } => {
                observed.services.insert(name, ServiceSeen { id: "s".into(), version: 1, spec });
            }
            Step::ChangeService { name, spec, .. } => observed.services.get_mut(&name).unwrap().spec = spec,
            Step::RemoveService { name, .. } => drop(observed.services.remove(&name)),
            Step::RemoveNetwork { name, .. } => drop(observed.networks.remove(&name)),
            Step::RemoveFile { name, .. } => observed.files.retain(|f| f.name != name),
        }
    }
    observed.last = Some(wanted.resolved(&plan.names));
    observed.held.extend(observed.last.as_ref().unwrap().references());
    observed
}

fn applied(text: &str) -> (Wanted, Observed) {
    let wanted = wanted(text);
    let plan = plan(&wanted, &Observed::default(), How::default());
    let observed = carried_out(&plan, &wanted, Observed::default());
    (wanted, observed)
}

const PRUNE: How = How { force: false, prune: Prune::Owned };
const TWO: &str = "services: {web: {image: nginx, deploy: {replicas: 2}}, db: {image: mysql:8, environment: {A: 1}}}\n";

#[test]
fn a_first_apply_creates_and_a_second_does_nothing() {
    let wanted = wanted(TWO);
    let first = plan(&wanted, &Observed::default(), PRUNE);
    assert_eq!(
        first.to_string(),
        "+ create network demo_default\n+ create service demo_db\n+ create service demo_web\nstack demo: 3 to create\n"
    );
    let observed = carried_out(&first, &wanted, Observed::default());
    let second = plan(&wanted, &observed, PRUNE);
    assert_eq!(second.to_string(), "stack demo: no changes\n");
}

#[test]
fn a_change_is_told_member_by_member() {
    let (_, observed) = applied(TWO);
    let new = wanted(
        "services: {web: {image: 'nginx:2', deploy: {replicas: 3}}, db: {image: mysql:8, environment: {B: 1}}}\n",
    );
    let text = plan(&new, &observed, PRUNE).to_string();
    let expected = "~ change service demo_db\n    variable A: 1 -> (none)\n    variable B: (none) -> 1\n\
        ~ change service demo_web\n    label com.docker.stack.image: nginx -> nginx:2\n    Replicas: 2 -> 3\n    Image: nginx:latest -> nginx:2\n\
        stack demo: 2 to change\n";
    assert_eq!(text, expected);
}

#[test]
fn what_was_owned_and_is_not_wanted_any_more_is_removed_after_the_rest() {
    let (_, mut observed) = applied(TWO);
    let by_hand = ServiceSeen { id: "h".into(), version: 1, spec: json!({"Name": "demo_hand"}) };
    observed.services.insert("demo_hand".into(), by_hand);
    let new = wanted("services: {web: {image: nginx, deploy: {replicas: 2}, network_mode: host}}\n");
    let removing = plan(&new, &observed, PRUNE);
    let steps: Vec<String> =
        removing.steps.iter().map(|s| format!("{s:?}").split_whitespace().next().unwrap().to_owned()).collect();
    assert_eq!(steps, ["ChangeService", "RemoveService", "RemoveNetwork"]);
    assert!(removing.notes[0].contains("demo_hand is not in the files and is left alone"));
    assert_eq!(plan(&new, &observed, How::default()).steps.len(), 1, "not without prune");
    let all = plan(&new, &observed, How { prune: Prune::Labelled, ..PRUNE });
    assert!(all.steps.contains(&Step::RemoveService { name: "demo_hand".into(), id: "h".into() }));
}

#[test]
fn what_was_changed_by_hand_stays_and_is_told_until_it_is_taken_back() {
    let (same, mut observed) = applied(TWO);
    let spec = &mut observed.services.get_mut("demo_web").unwrap().spec;
    spec["Mode"]["Replicated"]["Replicas"] = json!(5);
    spec["TaskTemplate"]["ForceUpdate"] = json!(7);
    let nothing = plan(&same, &observed, PRUNE);
    assert_eq!(
        nothing.to_string(),
        "! service demo_web was changed by hand; it stays so, --force takes it back:\n    Replicas: 5, the files say 2\nstack demo: no changes\n"
    );
    let image = wanted(
        "services: {web: {image: 'nginx:2', deploy: {replicas: 2}}, db: {image: mysql:8, environment: {A: 1}}}\n",
    );
    let keeping = plan(&image, &observed, PRUNE);
    let Step::ChangeService { spec, .. } = &keeping.steps[0] else { panic!("{keeping:?}") };
    assert_eq!((&spec["Mode"]["Replicated"]["Replicas"], &spec["TaskTemplate"]["ForceUpdate"]), (&json!(5), &json!(7)));
    assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Image"], "nginx:2");
    let back = plan(&same, &observed, How { force: true, ..PRUNE });
    let Step::ChangeService { spec, .. } = &back.steps[0] else { panic!("{back:?}") };
    assert_eq!(spec["Mode"]["Replicated"]["Replicas"], 2);
    assert!(back.drift.is_empty());
    let scaled = wanted(&TWO.replace("replicas: 2", "replicas: 3"));
    assert!(plan(&scaled, &observed, PRUNE).to_string().contains("Replicas: 5 -> 3"), "the file's wish is newer");
}

#[test]
fn a_stack_of_another_client_is_taken_over() {
    let (same, mut observed) = applied(TWO);
    observed.last = None;
    let spec = &mut observed.services.get_mut("demo_web").unwrap().spec;
    spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("nginx:latest@sha256:abc");
    spec["TaskTemplate"]["Placement"] = json!({"Platforms": [{"Architecture": "amd64", "OS": "linux"}]});
    assert!(plan(&same, &observed, PRUNE).is_empty());
    let scaled = wanted(&TWO.replace("replicas: 2", "replicas: 3"));
    let change = plan(&scaled, &observed, PRUNE);
    let Step::ChangeService { spec, .. } = &change.steps[0] else { panic!("{change:?}") };
    assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Image"], "nginx:latest@sha256:abc", "the digest stays");
}

#[test]
fn another_content_is_another_config_and_the_old_one_is_kept_while_a_revision_holds_it() {
    let text = |content: &str| {
        format!("services: {{web: {{image: x, configs: [conf]}}}}\nconfigs: {{conf: {{content: {content}}}}}\n")
    };
    let (_, mut observed) = applied(&text("a"));
    assert_eq!(observed.files[0].name, "demo_conf");
    observed.files[0].same_as = None;
    let second = wanted(&text("b"));
    let rolled = plan(&second, &observed, PRUNE);
    assert_eq!(
        rolled.to_string(),
        "+ create config demo_conf-2\n~ change service demo_web\n    Configs./conf.ConfigName: demo_conf -> demo_conf-2\nstack demo: 1 to create, 1 to change\n"
    );
    let mut observed = carried_out(&rolled, &second, observed);
    assert!(plan(&second, &observed, PRUNE).is_empty());
    observed.held.remove(&(FileKind::Config, "demo_conf".into()));
    assert_eq!(plan(&second, &observed, PRUNE).steps.len(), 1, "nothing needs the first any more");
    observed.files[0].same_as = Some("demo_conf".into());
    observed.files[1].same_as = None;
    let back = plan(&wanted(&text("a")), &observed, How::default());
    assert!(back.to_string().contains("ConfigName: demo_conf-2 -> demo_conf\n"), "{back}");
}

#[test]
fn what_cannot_be_done_is_refused() {
    let (_, observed) = applied(TWO);
    let global =
        wanted("services: {web: {image: nginx, deploy: {mode: global}}, db: {image: mysql:8, environment: {A: 1}}}\n");
    assert!(plan(&global, &observed, PRUNE).refusals[0].contains("a mode does not change"));
    let foreign = Observed { foreign: [("demo_web".to_owned(), "other".to_owned())].into(), ..Observed::default() };
    assert!(plan(&wanted(TWO), &foreign, PRUNE).refusals[0].contains("is of the stack other"));
}
