//! `list`, as an operator reads it and as a program does.

use std::time::Duration;

use macvlan_agent_tests::{
    agent::{Agent, run_to_end},
    lab::{Lab, Mac, Mode, Place, Upstream},
    surroundings::{eventually, patience},
    traffic::frame,
};

const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);

fn list(run_dir: &str, format: &str) -> (String, String) {
    let output = run_to_end(&["list", "-o", format, &format!("--run.dir={run_dir}")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn it_shows_the_counts_of_the_running_agent() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    let agent = Agent::start();
    agent.await_known(&[&sub]);
    lab.station.send(&frame(sub.mac(), STRANGER, 100), 42);
    let run_dir = agent.run_dir().display().to_string();
    let labels = sub.labels().map(|(_, value)| value);
    eventually(patience(Duration::from_secs(2)), || {
        let (text, _) = list(&run_dir, "json");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let all = json["sub_interfaces"].as_array().unwrap();
        let own = all
            .iter()
            .find(|each| ["parent", "interface", "netns"].map(|key| each[key].as_str().unwrap()) == labels)
            .ok_or_else(|| format!("not in {text}"))?;
        assert_eq!(own["mode"], "bridge");
        assert_eq!(own["mac"], sub.mac().to_string());
        match own["counts"]["delivered_external"].as_u64() {
            Some(42) => Ok(()),
            other => Err(format!("delivered: {other:?}")),
        }
    });
    let (table, _) = list(&run_dir, "table");
    let row = table.lines().find(|line| line.contains(&labels[2])).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..4], [labels[0].as_str(), "macv1", &labels[2], "bridge"]);
    assert!(cells.contains(&"42"), "{row}");
    let (yaml, _) = list(&run_dir, "yaml");
    assert!(yaml.contains("delivered_external: 42"), "{yaml}");
}

#[test]
fn without_an_agent_it_shows_who_there_is_and_says_that_nobody_counts() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Vepa);
    let (text, warning) = list("/nonexistent/macvlan-agent", "json");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let own = json["sub_interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .find(|each| each["netns"].as_str() == Some(&sub.labels()[2].1))
        .unwrap();
    assert_eq!(
        (&own["mode"], &own["counts"]),
        (&"vepa".into(), &serde_json::Value::Null)
    );
    assert!(warning.contains("counts are not known"), "{warning}");
}
