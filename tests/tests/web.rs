//! Who is answered, how, and what a client that behaves badly can do: formats, compression, TLS, client certificates,
//! passwords, limits, sockets of systemd. `web.config.file` is the exporters' own, so one of Debian's takes the same.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::{Agent, run_to_end},
    exposition::{self, Response, Scrape},
    lab::{Lab, Mode, Place, Upstream},
    surroundings::{agent_program, eventually, node_exporter_program, on_host, patience, prometheus_program},
    tls::{Authority, Client, Identity, SERVER, Validity},
};
use tempfile::TempDir;

/// Not the loopback's: a neighbour's, as the agent sees it.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";
const MUTUAL: &str = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n";
const HEADERS: &str = "http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n    \
                       X-Content-Type-Options: nosniff\n    Strict-Transport-Security: max-age=31536000\n";

/// A directory with a `web.yml` and what it names.
struct Files {
    directory: TempDir,
    authority: Authority,
}

impl Files {
    fn new(text: &str) -> Self {
        let place = Self {
            directory: tempfile::Builder::new()
                .prefix("macvlan-web-")
                .tempdir()
                .expect("a directory"),
            authority: Authority::new("the tests").expect("an authority"),
        };
        place.write("ca.pem", &place.authority.pem());
        place.issue(Validity::Valid);
        place.write("web.yml", text);
        place
    }

    /// Puts a new certificate of the server in place.
    fn issue(&self, validity: Validity) -> Identity {
        let identity = self.authority.issue(SERVER, validity).expect("a certificate");
        identity.write(self.directory.path()).expect("it is written");
        identity
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).expect("it is written");
    }

    fn flag(&self) -> String {
        format!("--web.config.file={}", self.directory.path().join("web.yml").display())
    }

    fn agent(&self) -> Agent {
        Agent::start_with(&[&self.flag()])
    }

    fn client(&self, identity: Option<&Identity>) -> Client {
        Client::new(&self.authority, identity, &["http/1.1"]).expect("a client")
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers.get(name).map_or("", String::as_str)
}

fn basic(login: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    format!("Basic {}", BASE64_STANDARD.encode(login))
}

/// The agent answers, and has not complained.
fn unmoved(agent: &Agent, scrape: impl Fn() -> Response) {
    let before = Instant::now();
    let response = scrape();
    assert_eq!(response.status, 200, "{}", response.body);
    assert!(
        before.elapsed() < patience(Duration::from_secs(2)),
        "{:?}",
        before.elapsed()
    );
    let log = agent.log();
    for level in ["\"level\":\"ERROR\"", "panicked"] {
        assert!(!log.contains(level), "{log}");
    }
}

#[test]
fn the_format_is_the_one_that_is_asked_for() {
    let agent = Agent::start();
    let ask = |accept: &str, encoding: &str| {
        let headers = [("Accept", accept), ("Accept-Encoding", encoding)];
        exposition::get_with(agent.address(), "/metrics", &headers).unwrap()
    };
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let (text, open) = (ask("*/*", "identity"), ask(prometheus, "gzip"));
    assert_eq!(
        header(&text, "content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert_eq!(
        header(&open, "content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert_eq!(header(&text, "content-encoding"), "");
    assert_eq!(header(&open, "content-encoding"), "gzip");
    for response in [&text, &open] {
        assert_eq!(header(response, "vary"), "Accept, Accept-Encoding");
    }
    let series = |response: &Response| -> Vec<String> {
        let samples = response.body.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    assert_eq!(series(&text), series(&open));
    assert!(open.body.ends_with("\n# EOF\n") && !text.body.contains("# EOF"));
    Scrape::parse(&text.body).unwrap();
}

#[test]
fn the_exporters_flags_do_what_they_do_there() {
    let agent = Agent::start_with(&[
        "--web.listen-address=127.0.0.1:0",
        "--web.telemetry-path=/m",
        "--web.disable-exporter-metrics",
        "--web.max-requests=0",
    ]);
    let addresses: Vec<SocketAddr> = agent
        .log()
        .lines()
        .filter(|line| line.contains("\"listening\""))
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).ok()?["address"]
                .as_str()?
                .parse()
                .ok()
        })
        .collect();
    assert_eq!(addresses.len(), 2, "{}", agent.log());
    for address in addresses {
        let response = exposition::get(address, "/m").unwrap();
        assert_eq!(response.status, 200);
        assert!(response.body.contains("macvlan_agent_build_info"), "{}", response.body);
        assert!(!response.body.contains("process_"), "{}", response.body);
        assert_eq!(exposition::get(address, "/metrics").unwrap().status, 404);
    }
}

#[test]
fn tls_is_spoken_and_nothing_else() {
    let place = Files::new(&format!("{TLS}{HEADERS}"));
    let agent = place.agent();
    let response = place.client(None).get(agent.address(), "/metrics", &[]).unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(header(&response, "x-frame-options"), "deny");
    assert_eq!(header(&response, "x-content-type-options"), "nosniff");
    assert_eq!(header(&response, "strict-transport-security"), "max-age=31536000");
    // In clear there is no answer.
    assert!(exposition::get(agent.address(), "/metrics").is_err());
    // Who trusts another authority does not trust this.
    let other = Client::new(&Authority::new("others").unwrap(), None, &[]).unwrap();
    let refusal = other.get(agent.address(), "/metrics", &[]).unwrap_err();
    assert!(format!("{refusal:#}").contains("UnknownIssuer"), "{refusal:#}");
    // HTTP/2 is offered.
    let two = Client::new(&place.authority, None, &["h2", "http/1.1"]).unwrap();
    assert_eq!(
        two.connect(agent.address()).unwrap().conn.alpn_protocol(),
        Some(&b"h2"[..])
    );
    // Until it is switched off, for connections from then on.
    place.write("web.yml", &format!("{TLS}http_server_config:\n  http2: false\n"));
    assert_eq!(
        two.connect(agent.address()).unwrap().conn.alpn_protocol(),
        Some(&b"http/1.1"[..])
    );
    unmoved(&agent, || {
        place.client(None).get(agent.address(), "/metrics", &[]).unwrap()
    });
}

#[test]
fn a_client_must_have_a_certificate_of_the_authority() {
    let lab = Lab::new(Place::Own, Upstream::Wire);
    lab.parent.add_address(NEIGHBOUR, 32).unwrap();
    let place = Files::new(&format!("{TLS}{MUTUAL}  client_allowed_sans: [scraper.test]\n"));
    let agent = Agent::start_with(&[&place.flag(), "--web.listen-address=0.0.0.0:0"]);
    let address = SocketAddr::new(NEIGHBOUR.into(), second_port(&agent));
    let ask = |identity: Option<&Identity>, path: &str| {
        let answer = place.client(identity).get(address, path, &[]);
        answer.map_err(|error| format!("{error:#}"))
    };
    let good = place.authority.issue("scraper.test", Validity::Valid).unwrap();
    for path in ["/metrics", "/-/ready", "/", "/api/v1/parents"] {
        assert_eq!(ask(Some(&good), path).unwrap().status, 200, "{path}");
    }
    let others = Authority::new("others").unwrap();
    for (identity, alert) in [
        (None, "CertificateRequired"),
        (
            Some(place.authority.issue("scraper.test", Validity::Expired).unwrap()),
            "CertificateExpired",
        ),
        (Some(others.issue("scraper.test", Validity::Valid).unwrap()), ""),
        (Some(place.authority.issue("other.test", Validity::Valid).unwrap()), ""),
    ] {
        let refusal = ask(identity.as_ref(), "/metrics").unwrap_err();
        assert!(refusal.contains(alert), "{refusal} is not about {alert:?}");
    }
    unmoved(&agent, || ask(Some(&good), "/metrics").unwrap());
}

/// The port of the last address that the agent listens on.
fn second_port(agent: &Agent) -> u16 {
    // It answers at the first one before it has told of the second.
    eventually(patience(Duration::from_secs(5)), || {
        let log = agent.log();
        let line = log.lines().filter(|line| line.contains("\"listening\"")).nth(1);
        let line = line.ok_or_else(|| format!("it listens at one place alone: {log}"))?;
        let json: serde_json::Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        let address = json["address"]
            .as_str()
            .and_then(|text| text.parse::<SocketAddr>().ok());
        address
            .map(|address| address.port())
            .ok_or_else(|| format!("it does not say where: {line}"))
    })
}

#[test]
fn an_expired_certificate_is_told_and_a_new_one_taken_without_a_restart() {
    let place = Files::new(TLS);
    place.issue(Validity::Expired);
    let agent = place.agent();
    let client = place.client(None);
    let refusal = client.get(agent.address(), "/metrics", &[]).unwrap_err();
    assert!(format!("{refusal:#}").contains("xpired"), "{refusal:#}");
    assert!(
        agent.log().contains("the server's certificate has expired"),
        "{}",
        agent.log()
    );
    let served = || -> Option<Vec<u8>> {
        let stream = client.connect(agent.address()).ok()?;
        Some(stream.conn.peer_certificates()?.first()?.to_vec())
    };
    // An open connection goes on over a rotation; each new one gets the new certificate.
    place.issue(Validity::Valid);
    let mut kept = client.connect(agent.address()).unwrap();
    let first = served().unwrap();
    place.issue(Validity::Valid);
    let second = served().unwrap();
    assert_ne!(first, second);
    // Half a rotation, or a broken file, changes nothing.
    let key = fs::read_to_string(place.directory.path().join("key.pem")).unwrap();
    place.write("key.pem", "no key\n");
    assert_eq!(served().unwrap(), second);
    place.write("key.pem", &key);
    place.write("web.yml", "tls_server_config: { cert_fil: x }\n");
    assert_eq!(served().unwrap(), second);
    let complaint = "web.config.file is wrong now";
    assert!(agent.log().matches(complaint).count() >= 2, "{}", agent.log());
    place.write("web.yml", TLS);
    write!(
        kept,
        "GET /-/healthy HTTP/1.1\r\nHost: {SERVER}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    let _ = kept.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn a_password_is_asked_for_and_opens_what_is_local() {
    let lab = Lab::new(Place::Own, Upstream::Wire);
    lab.parent.add_address(NEIGHBOUR, 32).unwrap();
    let sub = lab.add("macv1", Mode::Bridge);
    let hash = bcrypt::hash("correct horse", 5).unwrap();
    let users = format!("basic_auth_users:\n  eve: {hash}\n");
    let place = Files::new(&format!("{HEADERS}{users}"));
    let agent = Agent::start_with(&[&place.flag(), "--web.listen-address=0.0.0.0:0"]);
    let address = SocketAddr::new(NEIGHBOUR.into(), second_port(&agent));
    let ask = |path: &str, login: &str| {
        let login = basic(login);
        exposition::get_with(address, path, &[("Authorization", &login)]).unwrap()
    };
    for path in ["/metrics", "/-/healthy", "/", "/api/v1/sub-interfaces", "/nowhere"] {
        let response = exposition::get(address, path).unwrap();
        assert_eq!(response.status, 401, "{path}");
        assert!(header(&response, "www-authenticate").starts_with("Basic"), "{path}");
        assert_eq!(header(&response, "x-frame-options"), "deny", "{path}");
        for login in ["eve:wrong", "eve:", "bob:correct horse", "nonsense"] {
            assert_eq!(ask(path, login).status, 401, "{path} {login}");
        }
    }
    for path in ["/metrics", "/-/healthy", "/", "/api/v1/sub-interfaces"] {
        assert_eq!(ask(path, "eve:correct horse").status, 200, "{path}");
    }
    eventually(patience(Duration::from_secs(5)), || {
        let body = ask("/api/v1/sub-interfaces", "eve:correct horse").body;
        body.contains(&sub.link.name).then_some(()).ok_or(body)
    });
    // Without a password nobody from outside sees names and MACs.
    place.write("web.yml", HEADERS);
    assert_eq!(exposition::get(address, "/metrics").unwrap().status, 200);
    assert_eq!(exposition::get(address, "/api/v1/sub-interfaces").unwrap().status, 403);
    assert_eq!(
        exposition::get(agent.address(), "/api/v1/sub-interfaces")
            .unwrap()
            .status,
        200
    );
    unmoved(&agent, || exposition::get(address, "/metrics").unwrap());
}

#[test]
fn too_many_requests_are_told_so() {
    let place = Files::new("rate_limit:\n  interval: 1h\n  burst: 3\n");
    let agent = place.agent();
    let statuses: Vec<_> = (0..5).map(|_| agent.get("/-/healthy").status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    place.write("web.yml", "rate_limit:\n  interval: 0s\n");
    unmoved(&agent, || agent.get("/metrics"));
}

#[test]
fn long_headers_are_read_and_endless_ones_refused() {
    let agent = Agent::start();
    let long = "x".repeat(10_000);
    let ask = |value: &str| exposition::get_with(agent.address(), "/metrics", &[("X-Long", value)]);
    assert_eq!(ask(&long).unwrap().status, 200);
    let endless = "x".repeat(1 << 20);
    match ask(&endless) {
        Ok(response) => assert_eq!(response.status, 431),
        // The refusal may be lost when the connection is closed while we still send.
        Err(error) => assert!(agent.log().is_empty() || !agent.log().contains("panicked"), "{error:#}"),
    }
    let many: Vec<_> = (0..500).map(|number| (format!("X-{number}"), "y")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let response = exposition::get_with(agent.address(), "/metrics", &many).unwrap();
    assert_eq!(response.status, 431);
    unmoved(&agent, || agent.get("/metrics"));
}

#[test]
fn slow_clients_take_nothing_from_others() {
    let place = Files::new(TLS);
    let (plain, secure) = (Agent::start(), place.agent());
    let start = Instant::now();
    let mut slow = Vec::new();
    for agent in [&plain, &secure] {
        for number in 0..60 {
            let mut stream = TcpStream::connect(agent.address()).unwrap();
            // One sends nothing, the next half a request.
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
            }
            slow.push(stream);
        }
    }
    // Those who ask and do not listen.
    for _ in 0..60 {
        let mut stream = TcpStream::connect(plain.address()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        slow.push(stream);
    }
    unmoved(&plain, || plain.get("/metrics"));
    unmoved(&secure, || {
        place.client(None).get(secure.address(), "/metrics", &[]).unwrap()
    });
    // Within their time they are sent away.
    let mut first = slow.swap_remove(1);
    first.set_read_timeout(Some(patience(Duration::from_secs(20)))).unwrap();
    let mut answer = Vec::new();
    let _ = first.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let took = start.elapsed();
    assert!(took > Duration::from_secs(9), "{took:?}");
    assert!(took < patience(Duration::from_secs(15)), "{took:?}");
    unmoved(&plain, || plain.get("/metrics"));
}

#[test]
fn sockets_of_systemd_are_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let run_dir = tempfile::tempdir().unwrap();
    // As systemd does it: the socket is descriptor 3, and the process is told that it is meant.
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" run --web.systemd-socket \
                  --web.listen-address=127.0.0.1:1 --run.dir=\"$1\"";
    let child = Command::new("sh")
        .args(["-c", script])
        .arg(agent_program())
        .arg(run_dir.path())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _child = Ended(child);
    eventually(patience(Duration::from_secs(15)), || {
        let response = exposition::get(address, "/-/healthy").map_err(|error| format!("{error:#}"))?;
        (response.status == 200).then_some(()).ok_or(response.body)
    });
    // Without a socket it says what is missing.
    let other = tempfile::tempdir().unwrap();
    let output = run_to_end(&[
        "run",
        "--web.systemd-socket",
        &format!("--run.dir={}", other.path().display()),
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("systemd passed no socket"), "{said}");
}

/// A program that ends with its handle.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_wrong_file_is_refused_at_the_start() {
    let place = Files::new("tls_server_config:\n  cert_file: cert.pem\n  key_fil: key.pem\n");
    let run_dir = tempfile::tempdir().unwrap();
    let output = run_to_end(&[
        "run".to_owned(),
        place.flag(),
        format!("--run.dir={}", run_dir.path().display()),
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["web.yml:3: ", "key_fil"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

#[test]
fn exporters_and_promtool_take_the_same_file() {
    let hash = bcrypt::hash("correct horse", 5).unwrap();
    let place = Files::new(&format!("{TLS}{MUTUAL}{HEADERS}basic_auth_users:\n  eve: {hash}\n"));
    let scraper = place.authority.issue("scraper.test", Validity::Valid).unwrap();
    let client = place.client(Some(&scraper));
    let login = basic("eve:correct horse");
    let answers = |address: SocketAddr| {
        let with = client
            .get(address, "/metrics", &[("Authorization", &login)])
            .map_err(|error| format!("{error:#}"))?;
        let without = client
            .get(address, "/metrics", &[])
            .map_err(|error| format!("{error:#}"))?;
        let bare = place.client(None).get(address, "/metrics", &[]).is_err();
        let frame = header(&with, "x-frame-options").to_owned();
        Ok::<_, String>((with.status, without.status, bare, frame))
    };
    let ours = answers(place.agent().address()).unwrap();
    assert_eq!(ours, (200, 401, true, "deny".to_owned()));
    if !on_host() {
        // There is no other exporter in a VM: what ours answers there is what it answers here.
        return;
    }
    let web = place.directory.path().join("web.yml");
    let promtool = Command::new(prometheus_program("promtool"))
        .args(["check", "web-config"])
        .arg(&web)
        .output()
        .unwrap();
    assert!(
        promtool.status.success(),
        "{}",
        String::from_utf8_lossy(&promtool.stderr)
    );
    let (address, _exporter) = node_exporter(&web);
    let theirs = eventually(Duration::from_secs(20), || answers(address));
    assert_eq!(theirs, ours);
}

/// Debian's node exporter with this file.
fn node_exporter(web: &Path) -> (SocketAddr, Ended) {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a free port");
    let child = Command::new(node_exporter_program())
        .arg(format!("--web.listen-address={address}"))
        .arg(format!("--web.config.file={}", web.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the node exporter starts");
    thread::sleep(Duration::from_millis(100));
    (address, Ended(child))
}
