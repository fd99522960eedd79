//! Networks.

use super::field::record;
use crate::model::network::{IpamConfig, Subnet};
use crate::model::{Network, NetworkSpec};
use crate::wire::objects as wire;

record!(Network { id, meta, spec, vni, subnets, pending_delete });
record!(NetworkSpec { annotations, driver, ipv6, internal, ingress, attachable, ipam, ipam_options });
record!(IpamConfig { subnet, range, gateway, reserved });
record!(Subnet { subnet, range, gateway });
