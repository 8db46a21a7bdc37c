#!/usr/bin/env python3
"""The five db_bench workloads of the LavaStore paper (tables 1 and 2), scaled down, for LavaKV on LavaFS and for
RocksDB's BlobDB on ext4, one after the other on the same block device, and the ratios of their figures.

    paper_workloads.py --device /dev/loop0 --raw-gib 8 --seconds 120 --workloads A,B,Bcap,C,D,E

The device is overwritten. Needs root (mkfs.ext4, mount), db_bench and lava. What each letter means:
    A     load in random order without a log, then compact
    B     16 threads overwrite at full speed
    Bcap  16 threads overwrite, 60 MB/s of raw data together
    C     16 threads read while one writes, 60 MB/s at most
    D, E  16 threads seek and step 10 or 1,000 times while one writes, 60 MB/s at most

Device bytes are the kernel's counters of the device. RocksDB's latencies come from its histograms, which leave out
the wait for the rate limiter, so `service_lat_us` of `lava bench kv` is what they are compared with.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time

SHARED = ["--key_size=36", "--value_size=16000", "--compression_ratio=0.5", "--compression_type=zstd",
          "--write_buffer_size=67108864", "--min_blob_size=512"]
ROCKSDB = ["--enable_blob_files=1", "--blob_compression_type=zstd", "--enable_blob_garbage_collection=1",
           "--use_direct_reads=1", "--use_direct_io_for_flush_and_compaction=1", "--bloom_bits=10", "--histogram=1",
           "--ops_between_duration_checks=1"]
CAP = ["--benchmark_write_rate_limit=60000000"]
# Letter: benchmarks, flags.
WORKLOADS = {
    "A": ("fillrandom,compact", ["--disable_wal=1", "--threads=1"]),
    "B": ("overwrite", ["--threads=16"]),
    "Bcap": ("overwrite", ["--threads=16", *CAP]),
    "C": ("readwhilewriting", ["--threads=16", *CAP]),
    "D": ("seekrandomwhilewriting", ["--threads=16", "--seek_nexts=10", *CAP]),
    "E": ("seekrandomwhilewriting", ["--threads=16", "--seek_nexts=1000", *CAP]),
}


def counters(device):
    """Bytes read and written and flushes of the device so far, as the kernel counted them."""
    fields = open(f"/sys/block/{os.path.basename(device)}/stat", encoding="ascii").read().split()
    return {"read_ios": int(fields[0]), "read_bytes": int(fields[2]) * 512,
            "write_bytes": int(fields[6]) * 512, "flushes": int(fields[15])}


def execute(command, device):
    """Runs `command`; its output, seconds and what the device did meanwhile."""
    before, began = counters(device), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - began, counters(device)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nfailed: {done.stderr.strip()[-2000:]}")
    return done.stdout, seconds, {name: after[name] - before[name] for name in after}


def rocksdb(arguments, letter, directory, flags):
    """One workload of db_bench; figures by benchmark."""
    names, own = WORKLOADS[letter]
    output, seconds, device = execute(
        ["db_bench", f"--db={directory}/db", f"--benchmarks={names}", *SHARED, *ROCKSDB, *own, *flags],
        arguments.device)
    figures = {"seconds": seconds, "device": device, "log": output}
    # A result line, and the histogram of the operation that follows it.
    for part in re.split(r"^(?=\w+ +: +[\d.]+ micros/op)", output, flags=re.M)[1:]:
        name, rate, elapsed = re.match(r"(\w+) .*? (\d+) ops/sec ([\d.]+) seconds", part).groups()
        mean = re.search(r"Average: ([\d.]+)", part)
        p99 = re.search(r"P99: ([\d.]+)", part)
        longest = re.search(r"Max: ([\d.]+)", part)
        ops = int(re.search(r"seconds (\d+) operations", part).group(1))
        figures[name] = {"ops_per_s": int(rate), "ops": ops, "elapsed_s": float(elapsed),
                         "mean_us": mean and float(mean[1]), "p99_us": p99 and float(p99[1]),
                         "max_us": longest and float(longest[1])}
    return figures


def lavakv(arguments, letter, flags):
    """One workload of `lava bench kv`; figures by benchmark."""
    names, own = WORKLOADS[letter]
    output, seconds, device = execute(
        [arguments.lava, "bench", "kv", "--fs", arguments.device, "--db=/db", f"--benchmarks={names}", *SHARED, *own,
         *flags, *arguments.lava_flag, "--json"], arguments.device)
    figures = {"seconds": seconds, "device": device, "log": output}
    for name, line in zip(names.split(","), output.splitlines()):
        one = json.loads(line)
        # Only where the operation itself is what the limit slows down.
        latency = one["lat_us"]
        if one["workload"] == "overwrite":
            latency = one.get("service_lat_us", latency)
        figures[name] = {"ops_per_s": one["ops_per_s"], "ops": one["ops"], "elapsed_s": one["elapsed_s"],
                                    "mean_us": latency["avg"], "p99_us": latency["p99"], "max_us": latency["max"]}
    return figures


def main():
    """Both engines through all workloads asked for, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, help="block device to overwrite")
    parser.add_argument("--lava", default="target/release/lava", help="the lava binary")
    parser.add_argument("--raw-gib", type=float, default=8.0, help="raw data in GiB")
    parser.add_argument("--seconds", type=int, default=120, help="seconds of each workload but A")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="letters, with commas; A must come first")
    parser.add_argument("--engines", default="rocksdb,lavakv", help="which of the two run")
    parser.add_argument("--lava-flag", action="append", default=[], help="one more flag for lava bench kv")
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    letters = arguments.workloads.split(",")
    keys = int(arguments.raw_gib * (1 << 30) / 16_036)
    cache = int(arguments.raw_gib * (1 << 30) / 500)
    base = [f"--num={keys}", f"--cache_size={cache}"]

    def flags(letter):
        if letter == "A":
            return base
        return [*base, "--use_existing_db=1", f"--duration={arguments.seconds}"]

    result = {}
    for engine in arguments.engines.split(","):
        if engine == "rocksdb":
            # Otherwise the kernel zeroes inode tables while the first workload is counted.
            whole = ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
            subprocess.run(["mkfs.ext4", "-q", "-F", *whole, arguments.device], check=True)
            with tempfile.TemporaryDirectory() as directory:
                subprocess.run(["mount", arguments.device, directory], check=True)
                try:
                    result[engine] = {one: rocksdb(arguments, one, directory, flags(one)) for one in letters}
                finally:
                    subprocess.run(["umount", directory], check=True)
        else:
            mkfs = os.path.join(os.path.dirname(arguments.lava), "mkfs.lavafs")
            subprocess.run([mkfs, "-f", arguments.device], check=True, stdout=subprocess.DEVNULL)
            result[engine] = {one: lavakv(arguments, one, flags(one)) for one in letters}
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    report(result, letters)


def report(result, letters):
    """A line for each figure of each workload; the ratio where both engines ran."""
    print(f"{'workload':<28}{'figure':<14}{'rocksdb':>14}{'lavakv':>14}{'ratio':>8}")
    for letter in letters:
        rows = [(name, figure, [result.get(engine, {}).get(letter, {}).get(name, {}).get(figure)
                                for engine in ("rocksdb", "lavakv")])
                for name in WORKLOADS[letter][0].split(",")
                for figure in ("ops_per_s", "mean_us", "p99_us", "max_us")]
        rows += [("all", "seconds", [result.get(engine, {}).get(letter, {}).get("seconds")
                                     for engine in ("rocksdb", "lavakv")])]
        rows += [("all", figure, [result.get(engine, {}).get(letter, {}).get("device", {}).get(figure)
                                  for engine in ("rocksdb", "lavakv")]) for figure in ("read_bytes", "write_bytes")]
        for name, figure, values in rows:
            shown = "".join(f"{value:>14,.1f}" if value is not None else f"{'-':>14}" for value in values)
            ratio = f"{values[1] / values[0]:>8.2f}" if all(values) else f"{'-':>8}"
            print(f"{letter + ' ' + name:<28}{figure:<14}{shown}{ratio}")


if __name__ == "__main__":
    main()
