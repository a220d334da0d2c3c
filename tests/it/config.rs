//! The configuration: what it accepts, what it refuses, and how it says so.

use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_agent::config::{self, Config, Durability};
use wal_agent::remote::Location;

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "HOME" => "/home/ada",
        "PASSWORD" => "s3cret!",
        "HOST" => "backup.example",
        "ODD" => "x: y # z",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Config, Vec<String>> {
    config::parse(text, Path::new("/srv"), &environment).map_err(|errors| {
        let line = |error: config::ConfigError| match error.at {
            Some(at) => format!("{}:{}: {}", at.line, at.column, error.message),
            None => error.message,
        };
        errors.into_iter().map(line).collect()
    })
}

fn valid(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{text}\nis refused: {errors:#?}"))
}

fn errors(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(config) => panic!("{text}\nis accepted: {config:#?}"),
        Err(errors) => errors,
    }
}

/// One database with one replica, whose keys are `replica`, in flow style.
fn with_replica(replica: &str) -> String {
    format!("dbs:\n  - path: /a.db\n    replicas:\n      - {replica}\n")
}

fn location(replica: &str) -> Location {
    valid(&with_replica(replica)).databases[0].replicas[0].location.clone()
}

const LITESTREAM: &str = "
# A file as Litestream 0.3 users have it.
logging:
  level: DEBUG
  type: text
dbs:
  - path: /var/lib/app/app.db
    monitor-interval: 500ms
    checkpoint-interval: 0
    min-checkpoint-page-count: 500
    replicas:
      - path: /mnt/backup/app
        retention: 24h30m
      - type: sftp
        host: backup.example:2222
        user: ada
        password: 0123
        path: backup/app
        sync-interval: 10s
      - url: sftp://bob:p%40ss@[2001:db8::1]:23/srv/app%20x
        key-path: ~/.ssh/id_ed25519
        name: offsite
  - path: ~/notes.db
    meta-path: meta
    replicas: [{url: 'file:///mnt/backup//notes/'}]
";

#[test]
fn a_litestream_file_with_folders_and_sftp_works_unchanged() {
    let config = valid(LITESTREAM);
    assert_eq!(config.socket, Path::new("/run/wal-agent/agent.sock"));
    assert_eq!(config.log_level, Some(log::LevelFilter::Debug));
    assert_eq!(config.notices.len(), 3, "{:?}", config.notices);
    let [app, notes] = &config.databases[..] else { panic!("{config:#?}") };

    assert_eq!(app.path, Path::new("/var/lib/app/app.db"));
    assert_eq!(app.meta_path, Path::new("/var/lib/app/.app.db-agent"));
    assert_eq!((app.checkpoint.min_pages, app.checkpoint.max_pages), (500, 10_000));
    assert_eq!(app.checkpoint.interval, None);
    assert_eq!(app.max_write_block, Duration::from_millis(20));
    let names: Vec<_> = app.replicas.iter().map(|replica| replica.name.as_str()).collect();
    assert_eq!(names, ["file", "sftp", "offsite"]);
    let [file, sftp, offsite] = &app.replicas[..] else { panic!("{app:#?}") };
    assert_eq!(file.location, Location::Folder("/mnt/backup/app".into()));
    assert_eq!((file.sync_interval, file.durability), (None, Durability::Fsync));

    assert_eq!(sftp.sync_interval, Some(Duration::from_secs(10)));
    let Location::Sftp(server) = &sftp.location else { panic!("{sftp:#?}") };
    assert_eq!((server.host.as_str(), server.port), ("backup.example", 2222));
    assert_eq!((server.user.as_str(), server.path.as_str()), ("ada", "backup/app"));
    assert_eq!(server.password.as_ref().map(|secret| secret.reveal()), Some("0123"));

    let Location::Sftp(server) = &offsite.location else { panic!("{offsite:#?}") };
    assert_eq!((server.host.as_str(), server.port), ("2001:db8::1", 23));
    assert_eq!((server.user.as_str(), server.path.as_str()), ("bob", "/srv/app x"));
    assert_eq!(server.password.as_ref().map(|secret| secret.reveal()), Some("p@ss"));
    assert_eq!(server.key_path, Some(PathBuf::from("/home/ada/.ssh/id_ed25519")));

    assert_eq!(notes.path, Path::new("/home/ada/notes.db"));
    assert_eq!(notes.meta_path, Path::new("/srv/meta"));
    assert_eq!(notes.checkpoint.interval, Some(Duration::from_secs(60)));
    assert_eq!(notes.replicas[0].location, Location::Folder("/mnt/backup/notes".into()));
}

#[test]
fn our_own_keys_are_read() {
    let config = valid(
        "socket: /tmp/agent.sock\ndbs:\n- path: /a.db\n  max-write-block: 5ms\n  let-go-after: never\n  max-checkpoint-page-count: 0\n  \
         replicas:\n  - {type: sftp, host: h, user: u, durability: write, host-key: ssh-ed25519 AAAA}\n  \
         - type: sftp\n    host: i\n    user: u\n    host-key:\n    - ssh-ed25519 AAAA\n    - SHA256:x\n",
    );
    assert_eq!(config.socket, Path::new("/tmp/agent.sock"));
    let database = &config.databases[0];
    assert_eq!(database.max_write_block, Duration::from_millis(5));
    assert_eq!(database.let_go_after, None);
    assert_eq!(database.checkpoint.max_pages, 0);
    assert_eq!(database.replicas[0].durability, Durability::Write);
    let names: Vec<_> = database.replicas.iter().map(|replica| replica.name.as_str()).collect();
    assert_eq!(names, ["sftp", "sftp-2"]);
    let keys = |at: usize| match &database.replicas[at].location {
        Location::Sftp(server) => server.host_keys.clone(),
        Location::Folder(_) => panic!("replica {at} is a folder"),
    };
    assert_eq!(keys(0), ["ssh-ed25519 AAAA"]);
    assert_eq!(keys(1), ["ssh-ed25519 AAAA", "SHA256:x"]);
}

#[test]
fn all_errors_are_reported_at_once_with_line_and_column() {
    let found = errors(
        "adr: ':9090'\n\
         exec: run\n\
         dbs:\n\
         - path: /a.db\n  \
           min_checkpoint_page_count: 5\n  \
           checkpoint-interval: 60\n  \
           replicas:\n  \
           - type: s3\n    \
             bucket: b\n  \
           - type: sftp\n    \
             pasword: x\n  \
           - url: sftp://u@h/p\n    \
             path: /p\n\
         - path: /a.db\n\
         - replicas: 5\n",
    );
    let expected = [
        "1:1: adr is no key of the configuration; its keys are socket, include, dbs, logging",
        "2:1: exec is not supported by wal-agent; start the application and the agent as services of their own",
        "5:3: min_checkpoint_page_count is no key of a database; perhaps min-checkpoint-page-count was meant",
        "6:24: checkpoint-interval: \"60\" has no unit; for seconds, write an s behind the number",
        "8:11: type s3 is not supported by wal-agent; replicas live on SFTP servers and in folders",
        "9:5: bucket is not supported by wal-agent; replicas live on SFTP servers and in folders",
        "10:5: user is missing: who logs in on the server?",
        "10:5: host is missing: which server is it?",
        "11:5: pasword is no key of a replica; perhaps password was meant",
        "13:11: url and path exclude each other",
        "14:3: replicas is missing or empty: give at least one replica",
        "14:9: this database is given twice, first in line 4",
        "15:3: path is missing: which database is it?",
        "15:13: replicas must be a list: each entry begins with `- `",
        "15:13: replicas is missing or empty: give at least one replica",
    ];
    assert_eq!(found, expected);
}

#[test]
fn each_mistake_has_its_message() {
    let database = |keys: &str| format!("dbs:\n- path: /a.db\n  replicas: [{{path: /b}}]\n  {keys}\n");
    let cases = [
        ("".to_owned(), "the configuration must be keys with values"),
        ("dbs: []".to_owned(), "dbs is missing or empty"),
        ("dbs: 5".to_owned(), "dbs must be a list"),
        ("dbs: [".to_owned(), "this is not YAML"),
        (database("path: /b.db"), "4:3: path is given twice"),
        (database("max-write-block: 0"), "max-write-block must be more than 0"),
        (database("max-write-block: -1s"), "is negative"),
        (database("min-checkpoint-page-count: 0"), "must be at least 1"),
        (database("min-checkpoint-page-count: 1.5"), "\"1.5\" is not a whole number"),
        (database("max-checkpoint-page-count: 10"), "must be 0 or at least the minimum, 1000"),
        (database("meta-path: [a]"), "meta-path must be a single value"),
        (database("checkpoint-interval: 1 minute"), "is not a duration"),
        (database("replica: {path: /b}"), "replica is not supported by wal-agent; write replicas"),
        (database("monitor-interval: 100000h"), "longer than ten years"),
        (with_replica("{}"), "path or url is missing"),
        (with_replica("{path: sftp://u@h/p}"), "a replica's URL goes into url"),
        (with_replica("{type: ftp, path: /b}"), "type: \"ftp\" is neither sftp nor file"),
        (with_replica("{type: sftp, host: 'h:0', user: u}"), "host: the port is not a number from 1 to 65535"),
        (with_replica("{type: sftp, host: h, user: u, path: 'sftp://u@h/p'}"), "a URL goes into url"),
        (with_replica("{type: sftp, host: h, user: u, host-key: AAAA}"), "host-key must be a key, as in ssh-ed25519 AAAA..."),
        (with_replica("{path: /b, host: h}"), "host is for SFTP servers, and this replica is a folder"),
        (with_replica("{url: /b}"), "url must begin with sftp:// or file://"),
        (with_replica("{url: 's3://b/p'}"), "s3:// is not supported by wal-agent"),
        (with_replica("{url: 'sftp://h/p'}"), "url: the user is missing"),
        (with_replica("{url: 'sftp://u@h/p', host: h}"), "url and host exclude each other"),
        (with_replica("{path: /b, durability: maybe}"), "\"maybe\" is none of fsync, write"),
        (with_replica("{path: /b, age: {}}"), "age is not supported by wal-agent"),
        (with_replica("{path: /b, sync-interval: 10}"), "\"10\" has no unit"),
        (with_replica("{path: /b}\n      - {path: /b/./}"), "5:9: line 4 has this place already"),
        (with_replica("{path: /b, name: n}\n      - {path: /c, name: n}"), "the name \"n\" is that of the replica of"),
        (
            with_replica("{path: /b}") + "  - path: /c.db\n    replicas: [{url: 'file:///b'}]\n",
            "6:16: line 4 has this place already",
        ),
        (
            "dbs:\n- {path: /a, meta-path: /m, replicas: [{path: /b}]}\n- {path: /c, meta-path: /m, replicas: [{path: /d}]}"
                .to_owned(),
            "3:25: meta-path: line 2 has this folder already",
        ),
        ("dbs:\n- {path: /a, replicas: [{path: /.a-agent}]}".to_owned(), "2:25: line 2 has this place already"),
        ("logging: {level: loud}\ndbs: []".to_owned(), "\"loud\" is none of debug, info, warn"),
    ];
    for (text, expected) in cases {
        let found = errors(&text);
        assert!(
            found.iter().any(|error| error.contains(expected)),
            "{text}\n{expected:?} is not in {found:#?}"
        );
    }
}

#[test]
fn durations_are_written_as_in_go() {
    let interval = |text: &str| {
        let replica = format!("{{path: /b, sync-interval: {text}}}");
        valid(&with_replica(&replica)).databases[0].replicas[0].sync_interval
    };
    assert_eq!(interval("0"), None);
    assert_eq!(interval("0s"), None);
    assert_eq!(interval("10s"), Some(Duration::from_secs(10)));
    assert_eq!(interval("24h30m"), Some(Duration::from_secs(88_200)));
    assert_eq!(interval("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(interval("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(interval("7\u{b5}s"), Some(Duration::from_micros(7)));
    for wrong in ["10", "s", "1x", "1s1", "1..5s", "ms5", "''x", "1 s", "."] {
        let found = errors(&with_replica(&format!("{{path: /b, sync-interval: \"{wrong}\"}}")));
        assert!(found[0].starts_with("4:35: sync-interval: "), "{wrong}: {found:?}");
    }
}

#[test]
fn variables_are_replaced_in_the_text_outside_comments() {
    let server = |replica: &str| match location(replica) {
        Location::Sftp(server) => server,
        Location::Folder(path) => panic!("{path:?} is a folder"),
    };
    let found = server("{url: \"sftp://u:$PASSWORD@${HOST}/a$\"} # $UNSET and '$UNSET");
    assert_eq!(found.host, "backup.example");
    assert_eq!(found.path, "/a$");
    assert_eq!(found.password.expect("a password").reveal(), "s3cret!");

    let found = server(
        "type: sftp\n        host: h\n        user: it's#$HOST\n        # don't $UNSET\n        password: '#$PASSWORD'",
    );
    assert_eq!(found.user, "it's#backup.example");
    assert_eq!(found.password.expect("a password").reveal(), "#s3cret!");

    let found = server("{type: sftp, host: h, user: 'it''s #$HOST'} # don''t $UNSET");
    assert_eq!(found.user, "it's #backup.example");

    let found = server("{type: sftp, host: h, user: u, password: \"$EMPTY\"}");
    assert_eq!(found.password, None);
}

#[test]
fn a_variable_that_is_not_set_is_the_only_error_of_its_line() {
    let found = errors(
        "dbs:\n- path: ${NOT_SET}/a.db\n  checkpoint-interval: $ALSO_NOT\n  max-write-block: 5\n  replicas: [{path: /b}]\n",
    );
    assert_eq!(
        found,
        [
            "2:9: the environment variable NOT_SET is not set",
            "3:24: the environment variable ALSO_NOT is not set",
            "4:20: max-write-block: \"5\" has no unit; for seconds, write an s behind the number",
        ]
    );
}

#[test]
fn places_behind_variables_are_those_of_the_file() {
    let found = errors("dbs:\n- {path: $HOST, checkpoint-interval: 5, replicas: [{path: /b}]}\n");
    assert_eq!(
        found,
        ["2:38: checkpoint-interval: \"5\" has no unit; for seconds, write an s behind the number"]
    );
    let found = errors("dbs:\n- path: /\u{e4}.db\n  replicas: [{path: /\u{e4}, retention: 5}]\n");
    assert!(found[0].starts_with("3:36: "), "{found:?}");
}

#[test]
fn no_error_shows_a_password() {
    let texts = [
        with_replica("{url: 'sftp://u:s3cret!@h:x/p'}"),
        with_replica("{url: 'sftp://u:s3cret!%zz@h/p'}"),
        with_replica("{url: 'ftp://u:s3cret!@h/p'}"),
        with_replica("{url: 'u:s3cret!@h/p'}"),
        with_replica("{path: 'sftp://u:s3cret!@h/p'}"),
        with_replica("{type: sftp, host: 'u:s3cret!@h', user: u, path: 'sftp://u:s3cret!@h'}"),
        with_replica("{type: sftp, host: h, user: u, password: [s3cret!]}"),
        with_replica("{type: $PASSWORD, durability: $PASSWORD, sync-interval: $PASSWORD}"),
        with_replica("{$PASSWORD: x, path: /b}"),
        with_replica("{path: /b, name: $PASSWORD}\n      - {path: /c, name: $PASSWORD}"),
        format!("{}  $PASSWORD\n", with_replica("{path: /b}")),
        "dbs: [$ODD: $ODD".to_owned(),
        "$PASSWORD".to_owned(),
    ];
    for text in texts {
        let found = errors(&text).join("\n");
        assert!(!found.contains("s3cret") && !found.contains("x: y"), "{text}\n{found}");
    }
    let config = valid(&with_replica("{type: sftp, host: h, user: u, password: $PASSWORD}"));
    let shown = format!("{config:?} {}", config.databases[0].replicas[0].location);
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn anchors_and_merges_share_settings() {
    let config = valid(
        "dbs:\n- path: /a.db\n  replicas:\n  - &server {type: sftp, host: h, user: u, path: a}\n\
         - path: /b.db\n  replicas:\n  - {<<: *server, path: b}\n",
    );
    assert_eq!(config.databases[1].replicas[0].location.to_string(), "sftp://u@h/~/b");
}

#[test]
fn locations_are_shown_without_password() {
    let cases = [
        ("sftp://u:p@h/a", "sftp://u@h/a"),
        ("sftp://u@h:22/a", "sftp://u@h/a"),
        ("sftp://u@[::1]:2022", "sftp://u@[::1]:2022/~/"),
        ("file:///a%20b", "file:///a b"),
        ("/a/./b/", "file:///a/b"),
    ];
    for (url, shown) in cases {
        let location = Location::parse_url(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(location.to_string(), shown);
    }
    let wrong = [
        "",
        "a/b",
        "file://a",
        "sftp://",
        "sftp://u@",
        "sftp://@h/p",
        "sftp://:p@h/p",
        "sftp://h/p",
        "sftp://u@[::1/p",
        "sftp://u@[::1]x/p",
        "sftp://u@h:/p",
        "sftp://u@h:+22/p",
        "sftp://u@h:65536/p",
        "sftp://u@h/p?q",
        "sftp://u@h h/p",
        "sftp://u%@h/p",
        "sftp://u%+1@h/p",
        "sftp://u%ff@h/p",
        "http://h/p",
    ];
    for url in wrong {
        assert!(Location::parse_url(url).is_err(), "{url} is accepted");
    }
}

#[test]
fn arguments_make_a_configuration_with_all_defaults() {
    let urls = ["file:///b".to_owned(), "sftp://u@h/p".to_owned()];
    let config = Config::from_arguments(Path::new("/a.db"), &urls).expect("valid arguments");
    let expected = valid("dbs: [{path: /a.db, replicas: [{path: /b}, {url: 'sftp://u@h/p'}]}]");
    assert_eq!(config, expected);

    let wrong = ["file:///b".to_owned(), "/b/".to_owned(), "ftp://x".to_owned()];
    let errors = Config::from_arguments(Path::new("/"), &wrong).expect_err("wrong arguments").to_string();
    let expected = [
        "/ is no database file",
        "file:///b is given twice",
        "replica 3: the scheme of the URL is neither sftp:// nor file://",
    ];
    assert_eq!(errors, expected.join("\n"));
}

/// Writes a configuration and what it includes; returns what loading it says, with the folder left out.
fn load(main: &str, included: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let conf_d = folder.path().join("conf.d");
    std::fs::create_dir(&conf_d).expect("the folder is ours");
    for (name, text) in included {
        std::fs::write(conf_d.join(name), text).expect("the folder is ours");
    }
    let file = folder.path().join("main.yml");
    std::fs::write(&file, main.replace("CONF_D", &conf_d.display().to_string())).expect("the folder is ours");
    let shorten = |text: String| text.replace(&format!("{}/", folder.path().display()), "");
    config::load(&file, &environment).map_err(|errors| shorten(errors.to_string()))
}

const APP: &str = "dbs: [{path: /app.db, replicas: [{path: /b/app}]}]";
const WEB: &str = "dbs: [{path: /web.db, replicas: [{path: /b/web}]}]";

#[test]
fn included_files_add_their_databases_in_the_order_of_their_names() {
    let included =
        [("20-web.yml", WEB), ("10-app.yml", APP), ("30.yml.off", "nonsense"), (".30.yml", "nonsense")];
    let config = load("include: CONF_D\n", &included).expect("it is valid");
    let paths: Vec<_> = config.databases.iter().map(|database| database.path.display().to_string()).collect();
    assert_eq!(paths, ["/app.db", "/web.db"]);
    let config = load(&format!("include: CONF_D\n{WEB}"), &[("10-app.yml", APP)]).expect("it is valid");
    assert_eq!(config.databases[0].path, Path::new("/web.db"), "the including file comes first");
}

#[test]
fn all_errors_of_all_files_are_told_with_their_files() {
    let included = [("a.yml", "dbs: [{path: /c.db, replicas: []}]"), ("b.yml", "socket: /x\ndbs: []\n")];
    let errors =
        load(&format!("include: CONF_D\nsoket: /s\n{APP}\n"), &included).expect_err("it is not valid");
    let expected = [
        "main.yml:2:1: soket is no key of the configuration; perhaps socket was meant",
        "conf.d/a.yml:1:31: replicas is missing or empty: give at least one replica",
        "conf.d/b.yml:1:1: socket is no key of an included file; its keys are dbs",
        "conf.d/b.yml:1:1: dbs is missing or empty: there is no database to replicate",
    ];
    assert_eq!(errors.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn no_two_files_may_give_one_database_or_one_place() {
    let included = [("a.yml", APP), ("b.yml", "dbs: [{path: /other.db, replicas: [{path: /b/app}]}]")];
    let errors = load(&format!("include: CONF_D\n{APP}\n"), &included).expect_err("it is not valid");
    let expected = [
        "conf.d/a.yml:1:14: this database is given twice, first in line 2 of main.yml",
        "conf.d/a.yml:1:34: line 2 of main.yml has this place already; give this replica one of its own",
        "conf.d/b.yml:1:36: line 2 of main.yml has this place already; give this replica one of its own",
    ];
    assert_eq!(errors.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_configuration_without_any_database_is_an_error_wherever_they_are_looked_for() {
    let error = load("include: CONF_D\n", &[]).expect_err("there is no database");
    assert_eq!(error, "main.yml: there is no database to replicate, neither here nor in conf.d");
    let error = load("include: CONF_D/not-there\n", &[]).expect_err("there is no folder");
    assert!(error.contains("include: conf.d/not-there: No such file"), "{error}");
}
