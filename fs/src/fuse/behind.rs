//! Appends that are answered before they have reached the device.
//!
//! A program that writes much would otherwise wait in turn for the copy into this process and for
//! the device. Here its bytes are copied into aligned buffers of [`BUFFER_LEN`], and a thread
//! appends full ones to the file while the next is being filled.
//!
//! Nothing can be seen of it but the speed: everything else that is asked of a file, its size and its
//! bytes, a sync or a close, first waits until all that was answered has been appended
//! ([`Behind::drain`]). An append that fails after it was answered is reported to the
//! next write, and to every sync and close until the file is truncated or closed by all: which program
//! asks first is chance, and none may be told that lost bytes are durable. Later buffers are dropped with it,
//! so that the file never has a hole. A filesystem about to be full is written to without delay, so that ENOSPC is
//! reported by the write itself.
//!
//! Order: `OpenFile::writing` is held by whoever pushes, then the state here, a leaf; the thread
//! appends with neither.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::Errno;
use parking_lot::{Condvar, Mutex};

use super::errno::{Answer, errno};
use super::handles::OpenFile;
use crate::device::AlignedBuf;

/// Bytes appended to a file at a time.
const BUFFER_LEN: usize = 1 << 20;

/// Full buffers of one file that wait.
const QUEUE_LEN_MAX: usize = 4;

/// Empty buffers that are kept.
const POOL_LEN_MAX: usize = 8;

/// Threads that append; more only helps where several files are written at the same time.
const THREADS: usize = 2;

/// What of one file is on its way.
#[derive(Debug, Default)]
pub(super) struct Behind {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Where the file will end; `None` while nothing is on its way.
    end: Option<u64>,
    filling: Option<Buffer>,
    queue: VecDeque<Buffer>,
    /// A thread has the file.
    busy: bool,
    /// Bytes ever taken, and appended or dropped.
    pushed: u64,
    done: u64,
    /// A failure that no write was told of yet.
    failed: Option<Errno>,
    /// Why bytes that were answered are not in the file; until it is truncated or closed.
    loss: Option<Errno>,
}

#[derive(Debug)]
struct Buffer {
    bytes: AlignedBuf,
    len: usize,
}

/// The threads that append, and their buffers. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Writers {
    jobs: Mutex<Sender<Arc<OpenFile>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pool: Mutex<Vec<AlignedBuf>>,
    /// Bytes on their way, of all files.
    queued: AtomicU64,
}

impl Writers {
    pub(super) fn start() -> io::Result<Writers> {
        let (jobs, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let shared = Arc::new(Shared::default());
        for _ in 0..THREADS {
            let (receiver, shared) = (receiver.clone(), shared.clone());
            std::thread::Builder::new()
                .name("write-behind".to_owned())
                .spawn(move || serve(&receiver, &shared))?;
        }
        Ok(Writers {
            jobs: Mutex::new(jobs),
            shared,
        })
    }

    /// Bytes on their way, of all files.
    pub(super) fn queued(&self) -> u64 {
        self.shared.queued.load(Ordering::Relaxed)
    }

    /// Takes `data`, which begins at file offset `offset`, the end of the file; the caller holds
    /// `writing`.
    pub(super) fn push(&self, file: &Arc<OpenFile>, offset: u64, mut data: &[u8]) {
        let behind = &file.behind;
        let len = data.len() as u64;
        let mut state = behind.state.lock();
        self.shared.queued.fetch_add(len, Ordering::Relaxed);
        state.pushed += len;
        state.end = Some(offset + len);
        while !data.is_empty() {
            while state.queue.len() >= QUEUE_LEN_MAX {
                behind.moved.wait(&mut state);
            }
            if state.loss.is_some() {
                // What was before these bytes is gone.
                self.shared
                    .queued
                    .fetch_sub(data.len() as u64, Ordering::Relaxed);
                state.done += data.len() as u64;
                if !state.busy {
                    state.end = None;
                }
                return;
            }
            let filling = state.filling.get_or_insert_with(|| self.shared.buffer());
            let part = data.len().min(BUFFER_LEN - filling.len);
            filling.bytes[filling.len..filling.len + part].copy_from_slice(&data[..part]);
            filling.len += part;
            data = &data[part..];
            if filling.len == BUFFER_LEN {
                let full = state.filling.take();
                state.queue.extend(full);
                if !state.busy {
                    state.busy = true;
                    let sent = self.jobs.lock().send(file.clone());
                    sent.expect("the threads run as long as this does");
                }
            }
        }
    }

    /// Waits until all that was pushed to `file` so far has been appended.
    pub(super) fn drain(&self, file: &OpenFile) {
        let behind = &file.behind;
        let mut state = behind.state.lock();
        if state.end.is_none() {
            return;
        }
        let target = state.pushed;
        let last = state.filling.take();
        state.queue.extend(last);
        if !state.busy {
            state.busy = true;
            drop(state);
            self.shared.append_queued(file);
            state = behind.state.lock();
        }
        while state.done < target {
            behind.moved.wait(&mut state);
        }
    }
}

impl Behind {
    /// Where the file will end; `None` while nothing is on its way. For the holder of `writing`.
    pub(super) fn end(&self) -> Option<u64> {
        self.state.lock().end
    }

    /// What failed after it was answered, once: for a write.
    pub(super) fn failure(&self) -> Answer<()> {
        self.state.lock().failed.take().map_or(Ok(()), Err)
    }

    /// Fails where bytes that were answered are not in the file.
    pub(super) fn check_whole(&self) -> Answer<()> {
        self.state.lock().loss.map_or(Ok(()), Err)
    }

    /// The program has chosen a new end for the file.
    pub(super) fn forgive(&self) {
        let mut state = self.state.lock();
        state.failed = None;
        state.loss = None;
    }
}

impl Shared {
    fn buffer(&self) -> Buffer {
        let pooled = self.pool.lock().pop();
        Buffer {
            bytes: pooled.unwrap_or_else(|| AlignedBuf::zeroed(BUFFER_LEN)),
            len: 0,
        }
    }

    fn recycle(&self, buffer: Buffer) {
        self.queued.fetch_sub(buffer.len as u64, Ordering::Relaxed);
        let mut pool = self.pool.lock();
        if pool.len() < POOL_LEN_MAX {
            pool.push(buffer.bytes);
        }
    }

    /// Appends what is queued, until nothing is. The caller has set `busy`.
    fn append_queued(&self, file: &OpenFile) {
        let behind = &file.behind;
        let mut state = behind.state.lock();
        while let Some(buffer) = state.queue.pop_front() {
            drop(state);
            let appended = file.file.append(&buffer.bytes[..buffer.len]);
            state = behind.state.lock();
            state.done += buffer.len as u64;
            self.recycle(buffer);
            if let Err(error) = appended {
                tracing::error!(ino = file.ino.0, %error, "an append that was answered failed");
                state.failed = Some(errno(&error));
                state.loss = state.failed;
                let dropped: Vec<_> = state.queue.drain(..).collect();
                for buffer in dropped.into_iter().chain(state.filling.take()) {
                    state.done += buffer.len as u64;
                    self.recycle(buffer);
                }
            }
            behind.moved.notify_all();
        }
        if state.filling.is_none() {
            state.end = None;
        }
        state.busy = false;
        behind.moved.notify_all();
    }
}

fn serve(jobs: &Mutex<Receiver<Arc<OpenFile>>>, shared: &Shared) {
    loop {
        let job = jobs.lock().recv();
        let Ok(file) = job else {
            return;
        };
        shared.append_queued(&file);
    }
}
