//! What is refused, and what is said of it.

use crate::manifest::fake::{self, FakeDisk};
use crate::manifest::stack::Stack;

fn read(text: &str) -> Result<Stack, String> {
    fake::read(&[("k.yml", text)], &fake::options(), &FakeDisk::default()).map_err(|problems| problems.to_string())
}

fn deployment(pod: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n{pod}"
    )
}

fn container(lines: &str) -> String {
    deployment(&format!("      containers:\n      - name: web\n        image: x\n{lines}"))
}

#[test]
fn what_cannot_be_expressed_is_refused_with_what_to_do() {
    let rows = [
        (container("        livenessProb: {}\n"), "did you mean livenessProbe?"),
        (container("        livenessProbe: {grpc: {port: 1}}\n"), "use tcpSocket"),
        (container("        livenessProbe: {httpGet: {path: /, port: http}}\n"), "no port with the name http"),
        (
            container("        env: [{name: A, valueFrom: {configMapKeyRef: {name: no, key: x}}}]\n"),
            "no ConfigMap \"no\"",
        ),
        (container("        volumeMounts: [{name: no, mountPath: /x}]\n"), "add it under volumes"),
        (container("        resources: {limits: {nvidia.com/gpu: half}}\n"), "a whole number"),
        (container("        resources: {limits: {x.y/z: 1}, requests: {x.y/z: 2}}\n"), "they cannot"),
        (container("        resources: {limits: {hugepages-2Mi: 1}}\n"), "hugepages-2Mi is not supported"),
        (container("        resources: {limits: {memory: lots}}\n"), "a quantity like"),
        (container("      hostPID: true\n"), "tasks have their own processes"),
        (container("      volumes: [{name: v, csi: {driver: x}}]\n"), "use a claim, hostPath or nfs"),
        (container("      restartPolicy: Never\n"), "restartPolicy of a Deployment is Always"),
        (deployment("      containers: []\n"), "at least one container"),
        (
            "apiVersion: v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n".into(),
            "apiVersion of this kind is apps/v1",
        ),
        ("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: x}\n".into(), "publish the Service"),
        ("apiVersion: apps/v1\nkind: Deploymnet\nmetadata: {name: x}\n".into(), "did you mean Deployment?"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName}\n".into(),
            "the outside name itself",
        ),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata: {a: '%%'}\n".into(), "stringData takes text"),
    ];
    for (text, expected) in rows {
        let problems = read(&text).expect_err(expected);
        assert!(problems.contains(expected), "{expected}: {problems}");
    }
}

#[test]
fn a_problem_has_its_place_a_caret_and_all_of_them_come_at_once() {
    let text = container("        imagePullPolicy: Sometimes\n        tty: perhaps\n");
    let problems = read(&text).unwrap_err();
    let expected = "k.yml:12:26: imagePullPolicy is Always, IfNotPresent or Never, not \"Sometimes\"\n  12 |         imagePullPolicy: Sometimes\n     |                          ^\n";
    assert!(problems.starts_with(expected), "{problems}");
    assert!(problems.contains("k.yml:13:14: tty is true or false"), "{problems}");
}

#[test]
fn what_is_left_out_is_said() {
    let stack = read(&container("      serviceAccountName: robot\n")).unwrap();
    assert_eq!(stack.warnings.len(), 1);
    assert!(
        stack.warnings[0].starts_with("k.yml:12:7: serviceAccountName of a pod is left out"),
        "{:?}",
        stack.warnings
    );
}

#[test]
fn services_of_the_same_pods_must_not_contradict_each_other() {
    let service = |name: &str, target: u16| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: {target}}}]}}\n"
        )
    };
    let both = |a, b| read(&format!("{}{}{}", container(""), service("a", a), service("b", b)));
    assert!(both(8080, 9090).unwrap_err().contains("give one of them another port"));
    let stack = both(8080, 8080).unwrap();
    assert_eq!(stack.parts.services[0].spec.endpoint.as_ref().unwrap().redirects.len(), 1);
}

#[test]
fn init_containers_have_no_probes_but_sidecars_do() {
    let with = |more: &str| {
        read(&deployment(&format!(
            "      initContainers:\n      - name: first\n        image: x\n        startupProbe: {{tcpSocket: {{port: 1}}}}\n{more}      containers: [{{name: web, image: x}}]\n"
        )))
    };
    assert!(with("").unwrap_err().contains("makes it a sidecar"));
    let stack = with("        restartPolicy: Always\n").unwrap();
    let containers = &stack.parts.services[0].spec.task.containers;
    // The first container is the one that Docker's clients see.
    assert_eq!(containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["web", "first"]);
}

#[test]
fn a_service_of_two_families_gives_its_network_both() {
    let with = |spec: &str| {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{app: web}}\n  ports: [{{port: 80}}]\n{spec}"
        );
        read(&format!("{}---\n{service}", container("")))
    };
    let ipv6 = |spec: &str| with(spec).unwrap().parts.networks[0].ipv6;
    assert!(!ipv6("") && !ipv6("  ipFamilyPolicy: SingleStack\n") && !ipv6("  ipFamilies: [IPv4]\n"));
    assert!(ipv6("  ipFamilyPolicy: PreferDualStack\n") && ipv6("  ipFamilyPolicy: RequireDualStack\n"));
    assert!(ipv6("  ipFamilies: [IPv6, IPv4]\n") && ipv6("  ipFamilies: [IPv6]\n"));
    let warned = with("  ipFamilies: [IPv6]\n").unwrap().warnings.iter().any(|w| w.contains("IPv6 beside it"));
    assert!(warned);
    assert!(with("  ipFamilyPolicy: Both\n").unwrap_err().contains("PreferDualStack"));
    assert!(with("  ipFamilies: [IPX]\n").unwrap_err().contains("a family is IPv4 or IPv6"));
}

#[test]
fn credentials_of_a_secret_are_those_of_the_images_they_fit_and_are_shown_to_nobody() {
    let secret = |of_type: &str, content: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: login}}\ntype: {of_type}\nstringData: {{.dockerconfigjson: '{content}'}}\n"
        )
    };
    let pod = deployment(
        "      imagePullSecrets: [{name: login}]\n      containers: [{name: a, image: r.example/a}, {name: b, image: b}]\n",
    );
    let auths = r#"{"auths": {"r.example": {"username": "ann", "password": "sesame"}}}"#;
    let stack = read(&format!("{pod}{}", secret("kubernetes.io/dockerconfigjson", auths))).unwrap();
    let containers = &stack.parts.services[0].spec.task.containers;
    assert_eq!(containers.iter().map(|c| c.registry_auth.is_some()).collect::<Vec<_>>(), [true, false]);
    assert!(stack.parts.files.is_empty(), "it is no file of the pod");
    assert!(!format!("{stack:?}").contains("sesame"));
    let wrong = read(&format!("{pod}{}", secret("Opaque", auths))).unwrap_err();
    assert!(wrong.contains("of type \"Opaque\""), "{wrong}");
    let wrong = read(&format!("{pod}{}", secret("kubernetes.io/dockerconfigjson", "sesame"))).unwrap_err();
    assert!(wrong.contains("no JSON of credentials") && !wrong.contains("sesame"), "{wrong}");
    assert!(read(&pod).unwrap().warnings[0].contains("use --with-registry-auth"));
}
