//! From what the sources say to one owner of each namespace. Pure. Of two that contradict each other neither is believed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Owner, api::Container, cgroup::Identity, cni::Attachment};

/// What was learnt of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Evidence<'a> {
    /// Whose its processes are.
    pub identities: Option<&'a BTreeSet<Identity>>,
    /// The containers that call it theirs.
    pub containers: Vec<&'a Container>,
    /// The interfaces that CNI made in it.
    pub attachments: Vec<&'a Attachment>,
    /// Names and MACs of the sub-interfaces in it.
    pub interfaces: &'a [(String, String)],
}

/// The owners of namespaces that anything is known of.
#[must_use]
pub fn join(evidence: &BTreeMap<u32, Evidence<'_>>) -> BTreeMap<u32, Owner> {
    evidence
        .iter()
        .map(|(netns, evidence)| (*netns, owner(evidence)))
        .filter(|(_, owner)| *owner != Owner::default())
        .collect()
}

fn owner(evidence: &Evidence<'_>) -> Owner {
    let mut owner = Owner::default();
    if let [container] = evidence.containers[..] {
        owner = Owner {
            runtime: container.runtime.to_owned(),
            container_name: container.name.clone(),
            container_id: container.id.clone(),
            image: container.image.clone(),
            pod_name: container.pod_name.clone(),
            pod_namespace: container.pod_namespace.clone(),
        };
    } else if let Some(identities) = evidence.identities {
        by_cgroup(identities, &mut owner);
    }
    if let Some(attachment) = attachment(evidence) {
        if owner.container_id.is_empty() {
            owner.container_id.clone_from(&attachment.container_id);
        }
        if !attachment.pod_name.is_empty() {
            owner.pod_name.clone_from(&attachment.pod_name);
            owner.pod_namespace.clone_from(&attachment.pod_namespace);
        }
    }
    owner
}

fn by_cgroup(identities: &BTreeSet<Identity>, owner: &mut Owner) {
    let runtimes: BTreeSet<&str> = identities.iter().map(|identity| identity.runtime).collect();
    if let [runtime] = runtimes.into_iter().collect::<Vec<_>>()[..] {
        runtime.clone_into(&mut owner.runtime);
    }
    let mut identities = identities.iter();
    if let (Some(identity), None) = (identities.next(), identities.next()) {
        if identity.is_name {
            owner.container_name.clone_from(&identity.id);
        } else {
            owner.container_id.clone_from(&identity.id);
        }
    }
}

/// The one that all of CNI's results agree on; where files of former users lie about, those of the interfaces there are.
fn attachment<'a>(evidence: &Evidence<'a>) -> Option<&'a Attachment> {
    let agreed = |attachments: &[&'a Attachment]| {
        let first = *attachments.first()?;
        let alike = |other: &&Attachment| {
            (&other.container_id, &other.pod_name, &other.pod_namespace)
                == (&first.container_id, &first.pod_name, &first.pod_namespace)
        };
        attachments.iter().all(alike).then_some(first)
    };
    agreed(&evidence.attachments).or_else(|| {
        let is_there = |attachment: &&&Attachment| {
            let has = |(name, mac): &(String, String)| *name == attachment.interface && attachment.macs.contains(mac);
            evidence.interfaces.iter().any(has)
        };
        agreed(
            &evidence
                .attachments
                .iter()
                .filter(is_there)
                .copied()
                .collect::<Vec<_>>(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, name: &str) -> Container {
        Container {
            runtime: "docker",
            id: id.to_owned(),
            name: name.to_owned(),
            image: "bb".to_owned(),
            netns: Some(7),
            ..Container::default()
        }
    }

    fn identity(runtime: &'static str, id: &str) -> Identity {
        Identity {
            runtime,
            id: id.to_owned(),
            is_name: false,
        }
    }

    fn attachment(container: &str, pod: &str, mac: &str) -> Attachment {
        Attachment {
            container_id: container.to_owned(),
            interface: "net1".to_owned(),
            macs: vec![mac.to_owned()],
            pod_name: pod.to_owned(),
            pod_namespace: "shop".to_owned(),
            netns: 7,
        }
    }

    #[test]
    fn the_runtime_itself_is_believed_first() {
        let (web, cgroup) = (
            container("a1", "web-1"),
            BTreeSet::from([identity("docker", "a1"), identity("docker", "b2")]),
        );
        let evidence = Evidence {
            identities: Some(&cgroup),
            containers: vec![&web],
            ..Evidence::default()
        };
        let owner = owner(&evidence);
        assert_eq!(
            (owner.container_name.as_str(), owner.container_id.as_str()),
            ("web-1", "a1")
        );
    }

    #[test]
    fn a_shared_namespace_is_nobodys() {
        let (one, other) = (container("a1", "web-1"), container("b2", "web-2"));
        let cgroup = BTreeSet::from([identity("docker", "a1"), identity("docker", "b2")]);
        let mut evidence = Evidence {
            identities: Some(&cgroup),
            containers: vec![&one, &other],
            ..Evidence::default()
        };
        let expected = Owner {
            runtime: "docker".to_owned(),
            ..Owner::default()
        };
        assert_eq!(owner(&evidence), expected);
        evidence.containers.clear();
        assert_eq!(owner(&evidence), expected);
        let mixed = BTreeSet::from([identity("docker", "a1"), identity("podman", "b2")]);
        evidence.identities = Some(&mixed);
        assert_eq!(owner(&evidence), Owner::default());
    }

    #[test]
    fn a_pod_is_known_by_what_cni_keeps() {
        let pod = attachment("a1", "web-0", "m1");
        let cgroup = BTreeSet::from([identity("containerd", "a1"), identity("containerd", "b2")]);
        let evidence = Evidence {
            identities: Some(&cgroup),
            attachments: vec![&pod],
            ..Evidence::default()
        };
        let owner = owner(&evidence);
        assert_eq!(owner.runtime, "containerd");
        assert_eq!(
            (
                owner.container_id.as_str(),
                owner.pod_namespace.as_str(),
                owner.pod_name.as_str()
            ),
            ("a1", "shop", "web-0"),
            "the sandbox has the id, the containers in it share"
        );
    }

    #[test]
    fn of_old_results_those_of_the_interface_that_is_there_count() {
        let (old, new) = (attachment("a1", "old", "m1"), attachment("b2", "new", "m2"));
        let interfaces = [("net1".to_owned(), "m2".to_owned())];
        let mut evidence = Evidence {
            attachments: vec![&old, &new],
            interfaces: &interfaces,
            ..Evidence::default()
        };
        assert_eq!(owner(&evidence).pod_name, "new");
        evidence.interfaces = &[];
        assert_eq!(owner(&evidence), Owner::default());
    }

    #[test]
    fn one_of_whom_nothing_is_known_is_left_out() {
        assert_eq!(join(&BTreeMap::from([(7, Evidence::default())])), BTreeMap::new());
    }
}
