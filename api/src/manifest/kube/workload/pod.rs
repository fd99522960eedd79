//! `v1` Pod: a service of one task.

use std::rc::Rc;

use crate::manifest::kube::pod::Template;
use crate::manifest::yaml::Node;

use super::Workload;

/// Takes the object for its own template.
pub fn read(_node: &Rc<Node>, spec: &Rc<Node>, mut workload: Workload) -> Workload {
    workload.template = Template { meta: workload.meta.clone(), spec: Some(Rc::clone(spec)) };
    workload
}
