//! Secrets and configs.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_api::ports::control::{ControlError, ObjectFilter};
use skep_proto::model::container::Driver;
use skep_proto::model::secret::{SecretData, TEMPLATE_DRIVER};
use skep_proto::model::{Annotations, Config, ConfigId, ConfigSpec, Meta, Secret, SecretId, SecretSpec, Version};
use skep_proto::template;

use super::{Control, lookup, names};
use crate::store::{Change, State};

/// Content of a secret must stay below this many bytes (swarmkit `api/validation/secrets.go`).
const SECRET_BYTES: usize = 500 * 1024;
/// Content of a config must stay below this many bytes (swarmkit `manager/controlapi/config.go`).
const CONFIG_BYTES: usize = 1000 * 1024;

/// Checks what is common to both kinds.
fn check(
    kind: &'static str,
    annotations: &Annotations,
    data: &[u8],
    limit: usize,
    templating: Option<&Driver>,
) -> Result<(), ControlError> {
    let invalid = |text| Err(ControlError::InvalidArgument(text));
    names::check_file_name(kind, &annotations.name)?;
    if data.is_empty() || data.len() >= limit {
        return invalid(format!("{kind} data must be larger than 0 and less than {limit} bytes"));
    }
    match templating {
        None => Ok(()),
        Some(driver) if driver.name == TEMPLATE_DRIVER => match std::str::from_utf8(data) {
            Err(_) => invalid(format!("the {kind} {} is a template and must be text in UTF-8", annotations.name)),
            Ok(text) => template::parse(text).map(drop).or_else(|error| {
                invalid(format!("the {kind} {} cannot be used as a template: {error}", annotations.name))
            }),
        },
        Some(driver) => invalid(format!(
            "template driver {:?} of the {kind} {} is not known: only {TEMPLATE_DRIVER} is",
            driver.name, annotations.name
        )),
    }
}

/// Docker allows labels to change, and nothing else.
fn only_labels(kind: &'static str, unchanged: bool) -> Result<(), ControlError> {
    if unchanged {
        Ok(())
    } else {
        Err(ControlError::InvalidArgument(format!(
            "only updates to Labels are allowed: make another {kind} and use that"
        )))
    }
}

impl Control {
    pub(super) async fn list_secrets(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Secret>>, ControlError> {
        let state = self.read().await?;
        let matching = state.secrets().values().filter(|s| lookup::passes(filter, &s.id, &s.spec.annotations));
        let sorted: BTreeMap<SecretId, Arc<Secret>> = matching.map(|s| (s.id, Arc::new(without_data(s)))).collect();
        Ok(sorted.into_values().collect())
    }

    pub(super) async fn get_secret(&self, reference: &str) -> Result<Arc<Secret>, ControlError> {
        let state = self.read().await?;
        let secret = lookup::find(state.secrets(), "secret", reference, |_| true)?;
        Ok(Arc::new(without_data(&secret)))
    }

    pub(super) async fn make_secret(&self, spec: SecretSpec) -> Result<SecretId, ControlError> {
        if spec.driver.is_some() {
            return Err(ControlError::Unsupported("a secret driver".into()));
        }
        check("secret", &spec.annotations, &spec.data.0, SECRET_BYTES, spec.templating.as_ref())?;
        let id = SecretId::random(&mut rand::rng());
        self.change(Change::create(&Secret { id, meta: Meta::default(), spec })).await?;
        Ok(id)
    }

    pub(super) async fn change_secret(
        &self,
        reference: &str,
        at: Version,
        spec: SecretSpec,
    ) -> Result<(), ControlError> {
        self.change_seen(|state| {
            let mut secret = (*lookup::find(state.secrets(), "secret", reference, |_| true)?).clone();
            // Clients that read a secret never saw its data, and send it again or not at all.
            let same_data = spec.data == SecretData::default() || spec.data == secret.spec.data;
            only_labels("secret", same_data && spec.annotations.name == secret.spec.annotations.name)?;
            secret.meta.version = at;
            secret.spec.annotations.labels.clone_from(&spec.annotations.labels);
            Ok(Change::update(&secret))
        })
        .await
    }

    pub(super) async fn delete_secret(&self, reference: &str) -> Result<(), ControlError> {
        let find = |state: &State| lookup::find(state.secrets(), "secret", reference, |_| true);
        self.change_latest(|state| Ok(Some(Change::delete(&*find(state)?)))).await
    }

    pub(super) async fn list_configs(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Config>>, ControlError> {
        let state = self.read().await?;
        let matching = state.configs().values().filter(|c| lookup::passes(filter, &c.id, &c.spec.annotations));
        let sorted: BTreeMap<ConfigId, Arc<Config>> = matching.map(|c| (c.id, c.clone())).collect();
        Ok(sorted.into_values().collect())
    }

    pub(super) async fn get_config(&self, reference: &str) -> Result<Arc<Config>, ControlError> {
        lookup::find(self.read().await?.configs(), "config", reference, |_| true)
    }

    pub(super) async fn make_config(&self, spec: ConfigSpec) -> Result<ConfigId, ControlError> {
        check("config", &spec.annotations, &spec.data, CONFIG_BYTES, spec.templating.as_ref())?;
        let id = ConfigId::random(&mut rand::rng());
        self.change(Change::create(&Config { id, meta: Meta::default(), spec })).await?;
        Ok(id)
    }

    pub(super) async fn change_config(
        &self,
        reference: &str,
        at: Version,
        spec: ConfigSpec,
    ) -> Result<(), ControlError> {
        self.change_seen(|state| {
            let mut config = (*lookup::find(state.configs(), "config", reference, |_| true)?).clone();
            let same_data = spec.data.is_empty() || spec.data == config.spec.data;
            only_labels("config", same_data && spec.annotations.name == config.spec.annotations.name)?;
            config.meta.version = at;
            config.spec.annotations.labels.clone_from(&spec.annotations.labels);
            Ok(Change::update(&config))
        })
        .await
    }

    pub(super) async fn delete_config(&self, reference: &str) -> Result<(), ControlError> {
        let find = |state: &State| lookup::find(state.configs(), "config", reference, |_| true);
        self.change_latest(|state| Ok(Some(Change::delete(&*find(state)?)))).await
    }
}

/// What leaves the managers for a face: never the content.
fn without_data(secret: &Secret) -> Secret {
    Secret { spec: SecretSpec { data: SecretData::default(), ..secret.spec.clone() }, ..secret.clone() }
}
