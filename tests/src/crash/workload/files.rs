//! The workload's operations on files: creating, appending, syncing, cutting, reading.

use std::ffi::OsStr;

use lavafs::device::BlockDevice;
use lavafs::{
    CreateOptions, FileKind, FileRef, FileSize, FileSystem, Ino, Ownership, ReadRequest,
    TailPolicy, align_up,
};
use rand::{Rng, RngExt};

use super::{Open, Run, allow_no_space};
use crate::crash::model::{Branch, Node, Sized};

impl Run {
    pub(super) fn open_file(&mut self, uncertain: bool) -> Option<(u64, FileRef)> {
        let open = self
            .open
            .iter()
            .filter(|(_, open)| open.uncertain == uncertain);
        let inos: Vec<u64> = open.map(|(&ino, _)| ino).collect();
        let ino = self.pick(&inos)?;
        Some((ino, self.open[&ino].file.clone()))
    }

    /// A certain file, most of the time.
    pub(super) fn any_open_file(&mut self) -> Option<(u64, FileRef, bool)> {
        let uncertain = self.chance(20);
        let found = self
            .open_file(uncertain)
            .map(|(ino, file)| (ino, file, uncertain));
        found.or_else(|| {
            self.open_file(!uncertain)
                .map(|(ino, file)| (ino, file, !uncertain))
        })
    }

    pub(super) fn create(&mut self) -> Result<(), String> {
        let (dir, name) = self.place();
        if self.names().entries.contains_key(&(dir, name.clone())) {
            return Ok(());
        }
        let sealed = self.chance(25);
        let expected: u64 = self.rng.random_range(1..600_000);
        let expected = if self.chance(20) && self.fs.space().free > 2 * expected {
            expected
        } else {
            0
        };
        let options = CreateOptions {
            expected_size: expected,
            tail: if sealed {
                TailPolicy::Seal
            } else {
                TailPolicy::Pack
            },
        };
        let begun = self.now();
        let owner = Ownership {
            mode: 0o644,
            uid: 0,
            gid: 0,
        };
        let created = self
            .fs
            .create_at(Ino(dir), OsStr::new(&name), owner, &options);
        let Some((ino, file)) = allow_no_space(created, "create")? else {
            return Ok(());
        };
        let generation = file.generation().0;
        self.model.generations.push((self.now(), generation));
        let mut branch = Branch::new(begun, Vec::new());
        branch.acked = Some(begun);
        self.model.contents.insert(generation, vec![branch]);
        self.model
            .push(begun, format!("create {dir}/{name} as {ino}"), |names| {
                names.entries.insert((dir, name), ino.0);
                names
                    .nodes
                    .insert(ino.0, Node::new(FileKind::File, generation, 0o644));
            });
        self.born.insert(ino.0, self.last_event());
        self.named.insert(ino.0, self.last_event());
        self.sealed.insert(ino.0, sealed);
        let uncertain = false;
        self.open.insert(ino.0, Open { file, uncertain });
        Ok(())
    }

    pub(super) fn append(&mut self) -> Result<(), String> {
        let Some((_, file)) = self.open_file(false) else {
            return self.create();
        };
        let len = match self.rng.random_range(0..100) {
            0..50 => self.rng.random_range(1..1200),
            50..60 => 512 * self.rng.random_range(1..17),
            60..85 => self.rng.random_range(1200..12_000),
            85..97 => self.rng.random_range(12_000..70_000),
            _ => self.rng.random_range(70_000..300_000),
        };
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        let begun = self.now();
        self.log(
            begun,
            &file,
            &format!("append {len} at {}", file.size().lower()),
        );
        let appended = allow_no_space(file.append(&bytes), "append")?;
        let branch = self.model.branch(file.generation().0);
        if let Some(offset) = appended {
            if offset != branch.len() {
                return Err(format!("append at {offset} of {}", branch.len()));
            }
            branch.grow(begun, &bytes);
        }
        expect_size(&file, branch.len(), "append")
    }

    /// Notes the padding that a sync of a sealed file is about to add.
    pub(super) fn pad(&mut self, ino: u64, file: &FileRef, begun: usize) {
        if self.sealed.get(&ino) == Some(&true) {
            let unit = self.device.geometry().logical_block;
            let branch = self.model.branch(file.generation().0);
            let padding = align_up(branch.len(), unit) - branch.len();
            if padding > 0 {
                branch.grow(begun, &vec![0; padding as usize]);
            }
        }
    }

    /// A sync of a sealed file needs space for the padding, and so may fail without it.
    pub(super) fn sync(
        &mut self,
        ino: u64,
        file: &FileRef,
        sync: fn(&FileRef) -> lavafs::Result<()>,
        what: &str,
    ) -> Result<(), String> {
        let begun = self.now();
        self.log(begun, file, what);
        self.pad(ino, file, begun);
        sync(file).map_err(|error| format!("{what}: {error}"))?;
        let now = self.now();
        let branch = self.model.branch(file.generation().0);
        branch.synced.push((now, branch.len()));
        expect_size(file, branch.len(), what)
    }

    pub(super) fn fdatasync(&mut self) -> Result<(), String> {
        let Some((ino, file)) = self.open_file(false) else {
            return Ok(());
        };
        self.sync(ino, &file, |file| file.fdatasync(), "fdatasync")?;
        let born = self.born.get(&ino).copied().unwrap_or(0);
        self.model.ack(self.now(), born);
        Ok(())
    }

    pub(super) fn fsync(&mut self) -> Result<(), String> {
        let Some((ino, file, uncertain)) = self.any_open_file() else {
            return Ok(());
        };
        if uncertain {
            file.fsync().map_err(|error| format!("fsync: {error}"))?;
        } else {
            self.sync(ino, &file, |file| file.fsync(), "fsync")?;
            let now = self.now();
            self.model.branch(file.generation().0).note_size(now);
        }
        let named = self.named.get(&ino).copied().unwrap_or(0);
        self.model.ack(self.now(), named);
        Ok(())
    }

    pub(super) fn truncate(&mut self) -> Result<(), String> {
        let Some((ino, file, uncertain)) = self.any_open_file() else {
            return Ok(());
        };
        let size = self.size_to_cut_to(0, file.size().lower());
        let begun = self.now();
        let before = file.generation().0;
        let outcome = allow_no_space(file.truncate(size), "truncate")?;
        let generation = file.generation().0;
        if outcome.is_none() || generation == before {
            return if generation != before || outcome.is_some() && uncertain {
                Err("truncate is half done".to_owned())
            } else {
                Ok(())
            };
        }
        let now = self.now();
        self.model.generations.push((now, generation));
        let data = self.model.branch(before).data[..size as usize].to_vec();
        let mut branch = Branch::new(begun, data);
        branch.acked = Some(begun);
        // The cut, its generation and its size are one change: none is seen without the others.
        branch.note_size(0);
        self.model.contents.insert(generation, vec![branch]);
        if self.is_named(ino) {
            self.model
                .push(begun, format!("truncate {ino} to {size}"), |names| {
                    names.nodes.get_mut(&ino).expect("it is named").generation = generation;
                });
            self.born.insert(ino, self.last_event());
            self.named.insert(ino, self.last_event());
        }
        self.open.get_mut(&ino).expect("it is open").uncertain = false;
        expect_size(&file, size, "truncate")
    }

    pub(super) fn size_to_cut_to(&mut self, from: u64, to: u64) -> u64 {
        let size = self.rng.random_range(from..=to);
        match self.rng.random_range(0..4) {
            0 => from,
            1 => to,
            2 => (size & !511).max(from),
            _ => size,
        }
    }

    pub(super) fn settle(&mut self) -> Result<(), String> {
        let uncertain = self.chance(70);
        let Some((ino, file)) = self.open_file(uncertain) else {
            return Ok(());
        };
        let known = file.size();
        let from = if uncertain {
            known.lower()
        } else {
            known.lower() / 2
        };
        let size = self.size_to_cut_to(from, known.upper());
        let begun = self.now();
        self.log(begun, &file, &format!("settle {known:?} at {size}"));
        if allow_no_space(file.settle(size), "settle")?.is_none() {
            return Ok(());
        }
        let now = self.now();
        let generation = file.generation().0;
        let branches = self
            .model
            .contents
            .get_mut(&generation)
            .expect("it has contents");
        let last = branches.last_mut().expect("there is a branch");
        if uncertain || size < last.len() {
            let data = last.data[..size as usize].to_vec();
            let mut branch = Branch::new(begun, data);
            branch.acked = Some(now);
            branch.note_size(now);
            branch.synced.push((now, size));
            branches.push(branch);
            let born = self.born.get(&ino).copied().unwrap_or(0);
            self.model.ack(now, born);
        }
        self.open.get_mut(&ino).expect("it is open").uncertain = false;
        expect_size(&file, size, "settle")
    }

    pub(super) fn close(&mut self) -> Result<(), String> {
        if let Some((ino, file, _)) = self.any_open_file() {
            drop(file);
            self.close_file(ino);
        }
        Ok(())
    }

    pub(super) fn close_file(&mut self, ino: u64) {
        let open = self.open.remove(&ino).expect("it is open");
        if open.uncertain || !self.is_named(ino) {
            return;
        }
        self.log(self.now(), &open.file, "close");
        let generation = open.file.generation().0;
        let branches = &self.model.contents[&generation];
        let branch = branches.last().expect("there is a branch");
        let sized = Sized {
            acked: usize::MAX,
            size: branch.len(),
            exact_until: Some(branch.issued.len()),
        };
        self.pending.push((generation, branches.len() - 1, sized));
    }

    pub(super) fn reopen(&mut self) -> Result<(), String> {
        let names = self.names();
        let closed = |(ino, node): &(&u64, &Node)| node.is_file() && !self.open.contains_key(ino);
        let closed: Vec<u64> = names
            .nodes
            .iter()
            .filter(closed)
            .map(|(&ino, _)| ino)
            .collect();
        let Some(ino) = self.pick(&closed) else {
            return Ok(());
        };
        let file = self
            .fs
            .open_ino(Ino(ino))
            .map_err(|error| format!("open: {error}"))?;
        let uncertain = matches!(file.size(), FileSize::Between { .. });
        let branch = self.model.branch(file.generation().0);
        let was = branch.sized.iter().any(|sized| sized.exact_until.is_some());
        if uncertain && (was || branch.begun > 0) {
            return Err(format!("the size of inode {ino} has become uncertain"));
        }
        if !uncertain {
            expect_size(&file, branch.len(), "open")?;
        }
        self.open.insert(ino, Open { file, uncertain });
        Ok(())
    }

    pub(super) fn read_back(&mut self) -> Result<(), String> {
        let Some((_, file)) = self.open_file(false) else {
            return Ok(());
        };
        let branch = self.model.branch(file.generation().0);
        let mut bytes = vec![0; branch.data.len() + 1];
        let read = file
            .read_at(0, &mut bytes)
            .map_err(|error| format!("read_at: {error}"))?;
        if bytes[..read] != branch.data[..] {
            return Err(format!("{read} bytes read back differ"));
        }
        // The same in two requests of a batch, partly out of the tail and partly from the device.
        let (first, second) = bytes.split_at_mut(read / 3);
        let request = |offset, buf| ReadRequest {
            file: &file,
            offset,
            buf,
            read: 0,
        };
        let offset = first.len() as u64;
        let mut requests = [request(0, first), request(offset, second)];
        let batch = self.fs.read_batch(&mut requests, 2);
        batch.map_err(|error| format!("read_batch: {error}"))?;
        let batched: Vec<u8> = requests
            .iter()
            .flat_map(|request| request.buf[..request.read].to_vec())
            .collect();
        if batched == branch.data {
            Ok(())
        } else {
            Err(format!("{} bytes read in a batch differ", batched.len()))
        }
    }
}

fn expect_size(file: &FileRef, size: u64, after: &str) -> Result<(), String> {
    if file.size() == FileSize::Exact(size) {
        Ok(())
    } else {
        Err(format!("size {:?} after {after}, not {size}", file.size()))
    }
}
