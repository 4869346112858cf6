//! An operator's certificate lasts for as long as the operator comes by.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tierline_identity::{Ca, Grant, Identity, NODE_VALIDITY, Peer};

use crate::harness::{Ran, Site, tierline};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn peer(data: &Path) -> Peer {
    Identity::load(&data.join("identity"), SystemTime::now()).unwrap().peer().clone()
}

/// The operator of a folder gets a certificate that was signed `age` ago, for
/// `life`.
fn certified(site: &Site, data: &Path, age: Duration, life: Duration) -> Peer {
    let ca = Ca::open(&site.folder.path().join("cloud/ca")).unwrap();
    let own = peer(data);
    let grant = Grant { id: &own.id, role: own.role, name: &own.name, validity: life };
    Identity::issue(&ca, &grant, SystemTime::now() - age).unwrap().save(&data.join("identity")).unwrap();
    peer(data)
}

fn nodes(data: &Path, endpoint: &str) -> Ran {
    tierline(["--data", data.to_str().unwrap(), "nodes", "--json", "--endpoint", endpoint])
}

#[test]
fn a_command_renews_an_operator_s_certificate_in_the_last_third_of_its_life() {
    let site = Site::new();
    let edge = site.edge("edge-1");
    let data = site.join("operator", "admin", &site.cloud.url);
    let joined = peer(&data);
    nodes(&data, &site.cloud.url).json();
    assert_eq!(peer(&data).serial, joined.serial, "it is new");

    for (endpoint, age, life) in [(&site.cloud.url, Duration::ZERO, MINUTE), (&edge.url, 61 * DAY, NODE_VALIDITY)] {
        let old = certified(&site, &data, age, life);
        let ran = nodes(&data, endpoint);
        ran.json();
        assert!(ran.stderr.contains("the certificate of admin is renewed"), "{ran:?}");
        let new = peer(&data);
        assert_eq!((&new.id, &new.name, new.role), (&joined.id, &joined.name, joined.role));
        assert_ne!(new.serial, old.serial);
        assert!(new.not_after > SystemTime::now() + NODE_VALIDITY - DAY, "{new:?}");
        assert_eq!(nodes(&data, endpoint).stderr, "", "once is enough");
        assert_eq!(peer(&data).serial, new.serial);
    }

    let old = certified(&site, &data, 59 * DAY, NODE_VALIDITY);
    nodes(&data, &edge.url).json();
    assert_eq!(peer(&data).serial, old.serial, "a month is left");
}

#[test]
fn an_operator_whose_certificate_can_t_be_renewed_is_told_and_goes_on_while_it_lasts() {
    let mut site = Site::new();
    let edge = site.edge("edge-1");
    let data = site.join("operator", "admin", &site.cloud.url);

    let ended = certified(&site, &data, 10 * DAY, DAY);
    let ran = nodes(&data, &site.cloud.url);
    ran.refused(6, "the certificate of admin");
    assert!(ran.stderr.contains("has expired") && ran.stderr.contains("join again"), "{ran:?}");
    assert_eq!(peer(&data).serial, ended.serial);

    let old = certified(&site, &data, Duration::ZERO, 10 * MINUTE);
    site.cloud.kill();
    let ran = nodes(&data, &edge.url);
    assert_eq!(ran.json()["nodes"].as_array().map(Vec::is_empty), Some(false));
    assert!(ran.stderr.contains("the certificate of admin ends in"), "{ran:?}");
    assert_eq!(peer(&data).serial, old.serial);
}
