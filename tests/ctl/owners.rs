//! Files, folders and sockets that other users could have put there: refused, with the command that mends it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{approved, end};
use crate::common::command::{Done, LINEWARDEN, assert_says, capture, done, folder, linewarden};
use crate::common::netns::{Namespace, until};

const STRANGER: u32 = 65_534;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// As root, for whom nobody runs it, or this user by `sudo`.
fn check(folder: &Path, sudo: Option<&str>) -> Done {
    let mut command = linewarden(["check-config", "--config", "s.toml", "--approvals", "approvals.d"]);
    command.current_dir(folder).env_remove("SUDO_UID");
    done(command.envs(sudo.map(|user| ("SUDO_UID", user))))
}

#[test]
fn settings_and_approvals_that_others_could_have_written_are_refused() {
    let above = folder(&[]);
    let root = above.path().join("etc");
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("approvals.d")).unwrap();
    fs::create_dir_all(at("elsewhere")).unwrap();
    fs::write(at("s.toml"), "").unwrap();
    fs::write(at("approvals.d/a.toml"), approved()).unwrap();
    fs::write(at("elsewhere/b.toml"), approved().replace("\"partner\"", "\"b\"")).unwrap();
    // By way of another link, in a folder of its own.
    fs::create_dir_all(at("links")).unwrap();
    symlink("../elsewhere/b.toml", at("links/b.toml")).unwrap();
    symlink("../links/b.toml", at("approvals.d/b.toml")).unwrap();
    check(&root, None).expect(0);
    // A group in which there is nobody but the owner, as every user of Debian has one; and one with others.
    let [private, shared] = [0, 100];
    #[rustfmt::skip]
    let cases: [(&str, u32, u32, u32, Option<&str>); 16] = [
        ("s.toml", 0o666, 0, private, Some("s.toml may be changed by other users (mode 0666): run `chmod go-w s.toml`")),
        ("s.toml", 0o664, 0, shared, Some("s.toml may be changed by other users (mode 0664)")),
        ("s.toml", 0o664, 0, private, None),
        ("s.toml", 0o640, 0, shared, None),
        ("s.toml", 0o644, STRANGER, private, Some("s.toml belongs to user 65534, who is neither root nor the user that runs this (0): run `chown root s.toml`")),
        ("approvals.d/a.toml", 0o602, 0, private, Some("approvals.d/a.toml may be changed by other users (mode 0602): run `chmod go-w approvals.d/a.toml`")),
        ("approvals.d/a.toml", 0o600, STRANGER, private, Some("approvals.d/a.toml belongs to user 65534")),
        ("approvals.d", 0o777, 0, private, Some("approvals.d may be changed by other users (mode 0777): run `chmod go-w approvals.d`")),
        // The sticky bit keeps their hands off what is there, not from adding to it.
        ("approvals.d", 0o1777, 0, private, Some("approvals.d may be changed by other users (mode 1777)")),
        ("approvals.d", 0o755, STRANGER, private, Some("approvals.d belongs to user 65534")),
        (".", 0o1777, 0, private, None),
        (".", 0o775, 0, shared, Some("where other users may put another file in its place (mode 0775): run `chmod go-w /")),
        (".", 0o755, STRANGER, private, Some("where user 65534 may put another file in its place, whose folder that is: run `chown root /")),
        ("elsewhere", 0o777, 0, private, Some("approvals.d/b.toml lies in ")),
        ("links", 0o777, 0, private, Some("approvals.d/b.toml lies in ")),
        ("links", 0o1777, 0, private, None),
    ];
    for (name, bits, user, group, says) in cases {
        let path = at(name);
        let (before, is_folder) = (fs::metadata(&path).unwrap().permissions(), path.is_dir());
        chown(&path, Some(user), Some(group)).unwrap();
        mode(&path, bits);
        let found = check(&root, None).expect(if says.is_some() { 78 } else { 0 });
        assert_says(&found.err, says.as_slice());
        if let Some(says) = says {
            // The daemon says the same, before it opens anything.
            let mut run =
                linewarden(["run", "--config", "s.toml", "--approvals", "approvals.d", "--interface", "nix0"]);
            let refused = done(run.current_dir(&root).env_remove("SUDO_UID")).expect(78);
            assert_says(&refused.err, &[says]);
            // Whose files they are is the business of who asks what they would do.
            let mut replay = linewarden(["replay", "--quiet", "--approvals", "approvals.d"]);
            done(replay.arg(capture("wireguard-port-51820")).current_dir(&root)).expect(0);
        }
        if user == STRANGER {
            // `sudo` by that user is that user; another's word is not believed.
            check(&root, Some("65534")).expect(0);
            check(&root, Some("65533")).expect(78);
        }
        chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, before).unwrap();
        assert_eq!(path.is_dir(), is_folder);
        check(&root, None).expect(0);
    }
}

/// The sticky bit keeps others' hands off a link, but not its owner's.
#[test]
fn a_strangers_link_is_not_followed_where_he_may_lead_it_elsewhere() {
    let folder = folder(&[("s.toml", ""), ("safe/a.toml", &approved()), ("sticky/x", "")]);
    let (root, link) = (folder.path(), folder.path().join("sticky/link"));
    symlink("../safe", &link).unwrap();
    symlink("sticky/link", root.join("approvals.d")).unwrap();
    lchown(&link, Some(STRANGER), None).unwrap();
    check(root, None).expect(0);
    mode(&root.join("sticky"), 0o1777);
    let refused = check(root, None).expect(78);
    assert_says(
        &refused.err,
        &["approvals.d is reached by the link /", "sticky/link of user 65534", "run `chown -h root /"],
    );
    lchown(&link, Some(0), None).unwrap();
    check(root, None).expect(0);
}

#[test]
fn anybody_may_check_what_is_his_own_or_roots() {
    let folder = folder(&[("s.toml", ""), ("approvals.d/a.toml", &approved())]);
    mode(folder.path(), 0o755);
    // Where it was built others may not look.
    fs::copy(LINEWARDEN, folder.path().join("linewarden")).unwrap();
    let as_user = |user: &str, sudo: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups", "./linewarden", "check-config"]);
        command.args(["--config", "s.toml", "--approvals", "approvals.d"]).env("SUDO_UID", sudo);
        done(command.current_dir(folder.path()).stdin(Stdio::null()))
    };
    as_user("4242", "").expect(0);
    let file = folder.path().join("approvals.d/a.toml");
    chown(&file, Some(4242), None).unwrap();
    as_user("4242", "").expect(0);
    // Who is not root does not believe whom sudo names.
    let refused = as_user("4243", "4242").expect(78);
    assert_says(&refused.err, &["a.toml belongs to user 4242, who is neither root nor the user that runs this (4243)"]);
}

#[test]
fn a_reload_of_what_others_could_have_written_changes_nothing() {
    let namespace = Namespace::new("owners");
    let (mut daemon, folder) = super::start(&namespace, &approved());
    let file = folder.path().join("approvals.d/a.toml");
    mode(&file, 0o646);
    daemon.signal("HUP");
    daemon.says("approvals.d/a.toml may be changed by other users (mode 0646): run `chmod go-w approvals.d/a.toml`");
    daemon.says("approvals NOT reloaded");
    mode(&file, 0o644);
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    end(&mut daemon);
}

#[test]
fn logs_keys_and_sockets_are_not_put_where_others_may_take_them_away() {
    let namespace = Namespace::new("places");
    let folder = folder(&[
        ("approvals.d/none", ""),
        ("open/x", ""),
        ("sticky/x", ""),
        ("log/x", ""),
        ("state.toml", "[state]\ndir = \"open\"\n"),
        ("socket.toml", "[control]\nsocket = \"open/c.sock\"\n"),
        ("metrics.toml", "[metrics]\nlisten = \"unix:open/m.sock\"\n"),
        ("below.toml", "[records]\ndir = \"open/below/log\"\n"),
    ]);
    mode(&folder.path().join("open"), 0o777);
    mode(&folder.path().join("sticky"), 0o1777);
    symlink("../log", folder.path().join("open/link")).unwrap();
    let place = "where other users may put another file in its place (mode 0777): run `chmod go-w /";
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &["--records", "open"],
            &["open may be changed by other users (mode 0777): run `chmod go-w open`", "records.dir"],
        ),
        (&["--records", "sticky"], &["sticky may be changed by other users (mode 1777)"]),
        (&["--config", "below.toml"], &["open/below/log lies in ", place]),
        (&["--records", "open/link"], &["open/link lies in ", place]),
        (&["--records", "log", "--config", "state.toml"], &["open may be changed by other users", "state.dir"]),
        (&["--records", "log", "--config", "socket.toml"], &["control socket: open/c.sock lies in ", place]),
        (&["--records", "log", "--config", "metrics.toml"], &["metrics.listen: open/m.sock lies in ", place]),
    ];
    for (arguments, says) in cases {
        let mut command = namespace.command("timeout");
        command.args(["--signal=KILL", "60", LINEWARDEN, "run", "--interface", "wan0", "--approvals", "approvals.d"]);
        let refused = done(command.args(arguments).current_dir(folder.path())).expect(78);
        assert_says(&refused.err, says);
    }
    // Some systems have a group that may write to /var/log.
    let above = folder.path().join("log");
    chown(&above, Some(0), Some(100)).unwrap();
    mode(&above, 0o775);
    let arguments = ["--interface", "wan0", "--approvals", "approvals.d", "--records", "log/linewarden"];
    let mut daemon = namespace.daemon(folder.path(), &arguments);
    daemon.says("capturing");
    end(&mut daemon);
    assert_eq!(fs::metadata(above.join("linewarden")).unwrap().permissions().mode() & 0o7777, 0o755);
}

/// What answers in a folder that everybody may write to need not be the daemon.
#[test]
fn a_strangers_socket_is_not_asked() {
    let folder = folder(&[("sticky/x", ""), ("own/x", "")]);
    mode(folder.path(), 0o755);
    mode(&folder.path().join("sticky"), 0o1777);
    chown(folder.path().join("own"), Some(STRANGER), None).unwrap();
    let script = "import os, socket, sys
os.setresuid(65534, 65534, 65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    stream, _ = listener.accept()
    try:
        stream.recv(4096)
        stream.sendall(b'{\"version\":1,\"rotate\":{\"log\":\"nowhere\"}}\\n')
    except OSError:
        pass
    stream.close()";
    let ask = |name: &str| {
        let path = folder.path().join(name);
        let mut child = Command::new("python3").args(["-c", script]).arg(&path).stdin(Stdio::null()).spawn().unwrap();
        until("it listens", || std::os::unix::net::UnixStream::connect(&path).is_ok().then_some(()));
        let answers = [path.to_str().unwrap(), name].map(|path| {
            done(linewarden(["ctl", "--socket", path, "rotate"]).current_dir(folder.path()).env_remove("SUDO_UID"))
        });
        child.kill().unwrap();
        child.wait().unwrap();
        answers
    };
    for refused in ask("sticky/c.sock") {
        let refused = refused.expect(77);
        assert_says(&refused.err, &["sticky/c.sock: user 65534 answers there", "--socket"]);
        assert!(refused.out.is_empty());
    }
    // Where a service of that user has its folder, it is gone to on purpose: by its whole path.
    let [absolute, relative] = ask("own/c.sock");
    absolute.expect(0);
    relative.expect(77);
}
