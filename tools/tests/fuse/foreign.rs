//! Programs that know nothing of LavaFS, on a mount. One that is missing is named and its test passes,
//! unless the environment variable `LAVA_NEED_PROGRAMS` is set, as continuous integration does.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fixture::{Fixture, MIB, run};

/// True where `program` is there.
pub(crate) fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    assert!(
        found || std::env::var_os("LAVA_NEED_PROGRAMS").is_none(),
        "{program} is missing"
    );
    if !found {
        eprintln!("skipped: no {program}");
    }
    found
}

/// Runs a shell script, which must succeed, with `$M` the mount and `$T` a directory beside it.
pub(crate) fn script(fixture: &Fixture, text: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", text])
        .env("M", fixture.dir())
        .env("T", fixture.root.path())
        .env("HOME", fixture.root.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{said}\n{}", fixture.log());
    String::from_utf8(output.stdout).unwrap()
}

/// A tree of some hundred files.
fn source() -> &'static str {
    let perl = "/usr/share/perl";
    if Path::new(perl).exists() {
        perl
    } else {
        "/usr/share/zoneinfo"
    }
}

#[test]
fn rsync_copies_and_updates_a_tree() {
    if !have("rsync") {
        return;
    }
    let Some(mut fixture) = Fixture::mounted(256 * MIB) else {
        return;
    };
    script(
        &fixture,
        &format!(
            "rsync -a {0}/ $T/tree/; rsync -a $T/tree/ $M/tree/
             diff -r --no-dereference $T/tree $M/tree
             f=$(find $T/tree -type f | sort | head -1); echo more >>$f; touch -d 2001-01-01 $f
             rm -r $(find $T/tree -mindepth 1 -maxdepth 1 -type d | head -1)
             rsync -a --delete $T/tree/ $M/tree/
             test -z \"$(rsync -ain --delete $T/tree/ $M/tree/)\"
             diff -r --no-dereference $T/tree $M/tree",
            source()
        ),
    );
    fixture.remount();
    script(&fixture, "diff -r --no-dereference $T/tree $M/tree");
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn a_git_clone_is_whole_and_can_be_worked_in() {
    if !have("git") {
        return;
    }
    let Some(mut fixture) = Fixture::mounted(256 * MIB) else {
        return;
    };
    script(
        &fixture,
        &format!(
            "git config --global user.name n; git config --global user.email e@example.org
             git config --global safe.directory '*'; git config --global gc.auto 0
             git config --global maintenance.auto false
             cp -r {0} $T/repository; cd $T/repository; git init -q .; git add .; git commit -q -m one
             git clone -q --no-local file://$T/repository $M/clone; cd $M/clone; git fsck --full
             test -z \"$(git status --porcelain)\"
             echo x >new; git add new; git commit -q -m two; git checkout -q -b b; git mv new newer
             git commit -q -a -m three; git gc -q; git fsck --full; git log --oneline | wc -l
             git push -q origin b",
            source()
        ),
    );
    fixture.remount();
    let commits = script(
        &fixture,
        "cd $M/clone; git fsck --full; git log --oneline | wc -l",
    );
    assert_eq!(commits.trim(), "3");
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn sqlite_is_refused_and_told_so() {
    if !have("sqlite3") {
        return;
    }
    let Some(mut fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    for journal in ["delete", "wal", "memory"] {
        let _ = fs::remove_file(fixture.path("db"));
        let sql = format!(
            "pragma journal_mode={journal}; create table t(a); insert into t values(1); \
             insert into t values(2); update t set a=3; select sum(a) from t;"
        );
        let output = Command::new("sqlite3")
            .args([fixture.path("db").as_os_str(), sql.as_ref()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success(),
            "{journal}: it overwrites in place"
        );
        assert!(
            said.contains("disk I/O error") || said.contains("locking protocol"),
            "{said}"
        );
    }
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn rocksdb_fills_reopens_and_reads() {
    if !have("db_bench") {
        return;
    }
    let Some(mut fixture) = Fixture::mounted(512 * MIB) else {
        return;
    };
    script(
        &fixture,
        "db_bench --db=$M/db --benchmarks=fillsync,fillrandom,compact --num=20000 --value_size=400 >$T/out 2>&1 || { tail -3 $T/out >&2; exit 1; }",
    );
    fixture.remount();
    let read = script(
        &fixture,
        "db_bench --db=$M/db --use_existing_db=1 --benchmarks=readrandom,verifychecksum --num=20000 --reads=10000 2>&1",
    );
    let lower = read.to_lowercase();
    assert!(
        !lower.contains("corrupt") && !lower.contains("error"),
        "{read}"
    );
    assert!(read.contains("readrandom"), "{read}");
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn a_tree_copied_with_everything_is_equal() {
    let Some(mut fixture) = Fixture::mounted(256 * MIB) else {
        return;
    };
    script(
        &fixture,
        &format!(
            "mkdir $T/src; cp -a {0} $T/src/tree; cd $T/src; ln -s tree/none dangling
             ln $(find tree -type f | head -1) hard; chmod 4711 hard; truncate -s 3M zeros; mkdir -m 1777 sticky
             touch -d '1999-12-31 23:59:59.123456789' hard; printf 'a\\nb' >'odd
name'
             cp -a $T/src $M/copy
             tar --format=posix -cf $M/a.tar -C $T/src .; mkdir $M/un; tar -xpf $M/a.tar -C $M/un
             for d in copy un; do diff -r --no-dereference $T/src $M/$d
               (cd $T/src; find . -printf '%p %m %U %G %s %y %T@ %l\\n' | grep -v ' d ' | sort) >$T/want
               (cd $M/$d; find . -printf '%p %m %U %G %s %y %T@ %l\\n' | grep -v ' d ' | sort) >$T/have
               cmp $T/want $T/have; done",
            source()
        ),
    );
    fixture.remount();
    run(
        "diff",
        [
            "-r".as_ref(),
            "--no-dereference".as_ref(),
            fixture.root.path().join("src").as_os_str(),
            fixture.path("copy").as_os_str(),
        ],
    );
    fixture.umount();
    fixture.assert_clean();
}
