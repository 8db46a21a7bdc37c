//! The workload's operations on the namespace.

use std::ffi::OsStr;

use lavafs::{FileKind, Ino, Ownership, RenameMode, SetAttributes};
use rand::{Rng, RngExt};

use super::{Run, allow_no_space};
use crate::crash::model::{Names, Node};

impl Run {
    pub(super) fn directory(&mut self) -> u64 {
        let names = self.names();
        let nodes = names.nodes.iter().filter(|(_, node)| node.directory);
        let dirs: Vec<u64> = nodes.map(|(&ino, _)| ino).collect();
        self.pick(&dirs).expect("the root is a directory")
    }

    pub(super) fn place(&mut self) -> (u64, String) {
        let name = format!("n{}", self.rng.random_range(0..10));
        (self.directory(), name)
    }

    pub(super) fn entry(&mut self) -> Option<((u64, String), u64)> {
        let names = self.names();
        let entries: Vec<_> = names.entries.iter().collect();
        self.pick(&entries).map(|(key, &ino)| (key.clone(), ino))
    }

    pub(super) fn rename(&mut self) -> Result<(), String> {
        let Some((from, source)) = self.entry() else {
            return Ok(());
        };
        let names = self.names();
        let exchange = self.chance(20);
        let to = match self.entry() {
            Some((key, _)) if exchange || self.chance(50) => key,
            _ => self.place(),
        };
        let target = names.entries.get(&to).copied();
        if is_below(&names, to.0, source) || to == from {
            return Ok(());
        }
        let mode = match target {
            Some(target) if exchange => {
                if is_below(&names, from.0, target) {
                    return Ok(());
                }
                RenameMode::Exchange
            }
            Some(target) => {
                let (old, new) = (&names.nodes[&target], &names.nodes[&source]);
                let replaceable = old.directory == new.directory
                    && (!old.directory || names.is_empty_directory(target));
                if !replaceable {
                    return Ok(());
                }
                RenameMode::Replace
            }
            None => RenameMode::NoReplace,
        };
        let begun = self.now();
        let renamed = self.fs.rename_at(
            Ino(from.0),
            OsStr::new(&from.1),
            Ino(to.0),
            OsStr::new(&to.1),
            mode,
        );
        if allow_no_space(renamed, "rename")?.is_none() {
            return Ok(());
        }
        if target == Some(source) {
            return Ok(());
        }
        let what = format!("rename {from:?} to {to:?}, {mode:?}");
        self.model.push(begun, what, |names| {
            match target {
                Some(target) if mode == RenameMode::Exchange => {
                    names.entries.insert(from, target);
                }
                Some(target) => {
                    names.entries.remove(&from);
                    names.drop_name(target);
                }
                None => {
                    names.entries.remove(&from);
                }
            }
            names.entries.insert(to, source);
        });
        for ino in [Some(source), target].into_iter().flatten() {
            self.named.insert(ino, self.last_event());
        }
        Ok(())
    }

    pub(super) fn link(&mut self) -> Result<(), String> {
        let (Some((_, ino)), to) = (self.entry(), self.place()) else {
            return Ok(());
        };
        let names = self.names();
        if names.nodes[&ino].directory || names.entries.contains_key(&to) {
            return Ok(());
        }
        let begun = self.now();
        let linked = self.fs.link_at(Ino(ino), Ino(to.0), OsStr::new(&to.1));
        if allow_no_space(linked, "link")?.is_some() {
            self.model
                .push(begun, format!("link {ino} as {to:?}"), |names| {
                    names.entries.insert(to, ino);
                    names.nodes.get_mut(&ino).expect("it is named").links += 1;
                });
            self.named.insert(ino, self.last_event());
        }
        Ok(())
    }

    pub(super) fn unlink(&mut self) -> Result<(), String> {
        match self.entry() {
            Some((key, ino)) if !self.names().nodes[&ino].directory => self.unlink_entry(key, ino),
            _ => Ok(()),
        }
    }

    pub(super) fn unlink_entry(&mut self, key: (u64, String), ino: u64) -> Result<(), String> {
        let begun = self.now();
        let unlinked = self.fs.unlink_at(Ino(key.0), OsStr::new(&key.1));
        unlinked.map_err(|error| format!("unlink: {error}"))?;
        self.model
            .push(begun, format!("unlink {key:?} of {ino}"), |names| {
                names.entries.remove(&key);
                names.drop_name(ino);
            });
        self.named.insert(ino, self.last_event());
        Ok(())
    }

    pub(super) fn mkdir(&mut self) -> Result<(), String> {
        let (dir, name) = self.place();
        if self.names().entries.contains_key(&(dir, name.clone())) {
            return Ok(());
        }
        let begun = self.now();
        let owner = Ownership {
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        let made = self.fs.mkdir_at(Ino(dir), OsStr::new(&name), owner);
        if let Some(ino) = allow_no_space(made, "mkdir")? {
            self.model
                .push(begun, format!("mkdir {dir}/{name} as {ino}"), |names| {
                    names.entries.insert((dir, name), ino.0);
                    names
                        .nodes
                        .insert(ino.0, Node::new(FileKind::Directory, 0, 0o755));
                });
        }
        Ok(())
    }

    pub(super) fn symlink(&mut self) -> Result<(), String> {
        let (dir, name) = self.place();
        if self.names().entries.contains_key(&(dir, name.clone())) {
            return Ok(());
        }
        let len = if self.chance(10) { 1500 } else { 40 };
        let target = "t".repeat(self.rng.random_range(1..len));
        let begun = self.now();
        let owner = Ownership {
            mode: 0o777,
            uid: 0,
            gid: 0,
        };
        let made = self
            .fs
            .symlink_at(Ino(dir), OsStr::new(&name), OsStr::new(&target), owner);
        if let Some(ino) = allow_no_space(made, "symlink")? {
            let what = format!("symlink {dir}/{name} as {ino}");
            self.model.push(begun, what, |names| {
                names.entries.insert((dir, name), ino.0);
                let node = Node::new(FileKind::Symlink, 0, 0o777);
                let target = Some(target);
                names.nodes.insert(ino.0, Node { target, ..node });
            });
        }
        Ok(())
    }

    pub(super) fn rmdir(&mut self) -> Result<(), String> {
        let names = self.names();
        let empty: Vec<_> = names
            .entries
            .iter()
            .filter(|&(_, ino)| names.nodes[ino].directory && names.is_empty_directory(*ino))
            .collect();
        let Some((key, &ino)) = self.pick(&empty) else {
            return Ok(());
        };
        let begun = self.now();
        let removed = self.fs.rmdir_at(Ino(key.0), OsStr::new(&key.1));
        removed.map_err(|error| format!("rmdir: {error}"))?;
        self.model.push(begun, format!("rmdir {key:?}"), |names| {
            names.entries.remove(key);
            names.drop_name(ino);
        });
        Ok(())
    }

    pub(super) fn attributes(&mut self) -> Result<(), String> {
        let Some((_, ino)) = self.entry() else {
            return Ok(());
        };
        let begun = self.now();
        let name = format!("user.{}", self.rng.random_range(0..4));
        match self.rng.random_range(0..3) {
            0 => {
                let mode = self.rng.random_range(0..0o7777);
                let set = SetAttributes {
                    mode: Some(mode),
                    ..SetAttributes::default()
                };
                let done = self.fs.set_attributes(Ino(ino), &set);
                if allow_no_space(done, "set_attributes")?.is_some() {
                    self.model.push(begun, format!("chmod {ino}"), |names| {
                        names.nodes.get_mut(&ino).expect("it is named").mode = mode;
                    });
                }
            }
            1 => {
                let len = if self.chance(30) { 8000 } else { 100 };
                let mut value = vec![0; self.rng.random_range(0..len)];
                self.rng.fill_bytes(&mut value);
                let done = self.fs.set_xattr(Ino(ino), OsStr::new(&name), &value);
                if allow_no_space(done, "set_xattr")?.is_some() {
                    self.model
                        .push(begun, format!("set {name} of {ino}"), |names| {
                            let node = names.nodes.get_mut(&ino).expect("it is named");
                            node.xattrs.insert(name, value);
                        });
                }
            }
            _ => {
                let removed = self.fs.remove_xattr(Ino(ino), OsStr::new(&name));
                if removed.map_err(|error| format!("remove_xattr: {error}"))? {
                    self.model
                        .push(begun, format!("remove {name} of {ino}"), |names| {
                            let node = names.nodes.get_mut(&ino).expect("it is named");
                            node.xattrs.remove(&name);
                        });
                }
            }
        }
        self.named.insert(ino, self.last_event());
        Ok(())
    }
}

/// True where `dir` is `above` or lies below it.
fn is_below(names: &Names, mut dir: u64, above: u64) -> bool {
    loop {
        if dir == above {
            return true;
        }
        let Some((key, _)) = names.entries.iter().find(|&(_, &ino)| ino == dir) else {
            return false;
        };
        dir = key.0;
    }
}
