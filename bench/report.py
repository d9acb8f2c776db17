#!/usr/bin/env python3
"""Makes a report of what bench/run.sh has measured: report.py FACTS RAW RESULTS.md RESULTS.svg

FACTS has lines 'name TAB text', RAW lines 'mode TAB round TAB file system TAB metric TAB value'. The tables also go to
standard output.
"""

import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

OURS = "kmsfs"

# metric: (what it is called, unit, whether more is better, what it means)
METRICS = {
    "create": ("create", "items/s", True, "open O_CREAT, write 1 KiB, close; one thread, no flush"),
    "create_p50": ("create, median", "µs", False, "the same, of one item"),
    "create_p99": ("create, 99th percentile", "µs", False, ""),
    "read_warm": ("read, warm", "items/s", True, "open, read 1 KiB, close, after a first pass over all items"),
    "read_warm_p50": ("read, warm, median", "µs", False, ""),
    "read_warm_p99": ("read, warm, 99th percentile", "µs", False, ""),
    "read_warm_4": ("read, warm, 4 threads", "items/s", True, "all threads together"),
    "read_evicted_p50": (
        "read, evicted, median",
        "µs",
        False,
        "the item's page just dropped from the mount (posix_fadvise); the daemon and the disk's cache may keep theirs: "
        "what the daemon costs",
    ),
    "read_evicted_p99": ("read, evicted, 99th percentile", "µs", False, ""),
    "read_cold": ("read, cold", "items/s", True, "after unmounting, dropping the kernel's caches and mounting again"),
    "read_cold_p50": ("read, cold, median", "µs", False, ""),
    "read_cold_p99": ("read, cold, 99th percentile", "µs", False, ""),
    "stat_cold": ("stat, cold", "items/s", True, "each item once, as first thing after such a remount"),
    "stat_warm": ("stat, warm", "items/s", True, "once more"),
    "ls_cold": ("ls -l, cold", "s", False, "the folder of all items, as first thing after such a remount"),
    "ls_warm": ("ls -l, warm", "s", False, "once more"),
    "replace": ("replace", "items/s", True, "create under a temporary name, rename over the item; no flush"),
    "replace_p50": ("replace, median", "µs", False, ""),
    "replace_p99": ("replace, 99th percentile", "µs", False, ""),
    "mixed": (
        "8 processes, mixed",
        "operations/s",
        True,
        "of twenty, nine reads, five creations, three replacements, two removals, one file of 1 MiB; all together",
    ),
    "beside_p50": (
        "read beside a stream, median",
        "µs",
        False,
        "a small item, while another process writes and reads a large file",
    ),
    "beside_p99": ("read beside a stream, 99th percentile", "µs", False, ""),
    "unlink": ("unlink", "items/s", True, ""),
    "createsync": ("create + fsync", "items/s", True, "create with fsync before close, one thread"),
    "createsync_p50": ("create + fsync, median", "µs", False, ""),
    "createsync_p99": ("create + fsync, 99th percentile", "µs", False, ""),
    "createsync_4": ("create + fsync, 4 threads", "items/s", True, "all threads together, in one folder"),
    "stream_write": ("stream write", "MB/s", True, "the large file in writes of 1 MiB, one fsync at the end, counted"),
    "stream_cold": ("stream read, cold", "MB/s", True, "reads of 1 MiB, after a remount"),
    "stream_warm": ("stream read, warm", "MB/s", True, "once more"),
    "random_read": ("random read", "1/s", True, "4 KiB each (fio, psync), a quarter of the file, after a remount"),
    "random_write": ("random overwrite", "1/s", True, "4 KiB each, the same way; an fsync at the end is not counted"),
    "untar": ("untar", "s", False, "a tree of small source files; the archive is cached"),
    "remove": ("rm -r", "s", False, "of that tree"),
    "mount": ("mount", "ms", False, "the store of this load, with a key file or a password that costs little to check"),
    "mount_many": ("mount, a million items", "ms", False, "all in one folder; nothing of it cached"),
    "decide_remembered": (
        "decision, remembered",
        "µs",
        False,
        "nothing but the decision: 1,000 statements, 10,000 keys, a caller in 50 groups",
    ),
    "decide_anew": ("decision, anew", "µs", False, ""),
    "memory_end": ("memory at the end", "MiB", False, "what the daemon had resident when the load was done"),
    "memory": ("memory", "MiB", False, "the most that the daemon had resident, over all its mounts"),
}

PEERS = {
    "plain": "the disk's own file system, without FUSE",
    "kmsfs": "a table whose policy admits the user by uid; every open that decrypts is in the trail",
    "kmsfs-group": "the same, the user admitted by a group, which is read at each open",
    "kmsfs-owned": "a table that Unix alone protects",
    "limit": "a file system in memory on the same transport, one thread that does no work (`bench/limit.rs`)",
    "bindfs": "FUSE without encryption: `-o allow_other`",
    "gocryptfs": "`-allow_other`, for several users as kmsfs is",
    "gocryptfs-own": "gocryptfs for one user, without `-allow_other`, which costs it dearly as root",
    "securefs": "`-o allow_other`, its default format",
    "encfs": "`--standard --public`; does not notice changed ciphertext",
}

# What no daemon can pass. For what ends on the disk: the time that the disk's own file system takes, and that of the
# file system in memory besides. For what the kernel's cache or the daemon's memory serves: the latter alone. For
# streams: the slower of the two.
BOTH, MEMORY, SLOWER = range(3)
BOUNDS = {
    BOTH: "create create_p50 read_cold read_cold_p50 stat_cold ls_cold replace replace_p50 unlink createsync "
    "createsync_p50 createsync_4 mixed untar remove",
    MEMORY: "read_warm read_warm_p50 read_warm_4 read_evicted_p50 stat_warm ls_warm",
    SLOWER: "stream_write stream_cold stream_warm random_read random_write",
}
BOUND_OF = {metric: kind for kind, metrics in BOUNDS.items() for metric in metrics.split()}

MODES = {
    "as-is": "As it is: client and daemon on whichever core the kernel takes.",
    "pinned": "Client and daemon on one core (taskset), where no wake-up of another core hides what a daemon costs.",
}

COLOURS = ["#9a9a9a", "#d1495b", "#00798c", "#edae49", "#30638e", "#6a994e", "#8d5a97", "#bc6c25"]


def read(facts_path, raw_path):
    """The facts in order; values[mode][file system][metric] as a list, one a round; failures as sentences."""
    facts = [line.split("\t", 1) for line in Path(facts_path).read_text().splitlines()]
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    failures = []
    for line in Path(raw_path).read_text().splitlines():
        mode, number, peer, metric, value = line.split("\t")
        if metric == "failed":
            failures.append(f"{peer}, {mode}, round {number}: {value}")
            values[mode][peer]  # keeps its column
        else:
            values[mode][peer][metric].append(float(value))
    return facts, values, failures


def number(value):
    """Three digits that count, and no more zeros than are needed."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def spread(samples):
    if not samples:
        return "–"
    text = number(statistics.median(samples))
    return text if len(samples) == 1 else f"{text} ({number(min(samples))}–{number(max(samples))})"


def ratio(metric, ours, theirs):
    """How many times as good kmsfs is; none where either has no number, or the disk itself no daemon."""
    if not ours or not theirs:
        return None
    mine, other = statistics.median(ours), statistics.median(theirs)
    if mine <= 0 or other <= 0:
        return None
    return mine / other if METRICS[metric][2] else other / mine


def bound(metric, peers):
    """The bound of a row; none where what it is made of was not measured."""
    kind = BOUND_OF.get(metric)
    if kind is None or not all(peers.get(name, {}).get(metric) for name in ("plain", "limit")):
        return None
    disk, memory = (statistics.median(peers[name][metric]) for name in ("plain", "limit"))
    if kind == MEMORY:
        return memory
    more_is_better = METRICS[metric][2]
    if kind == SLOWER:
        return min(disk, memory) if more_is_better else max(disk, memory)
    return 1 / (1 / disk + 1 / memory) if more_is_better else disk + memory


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def tables(mode, peers):
    names = sorted(peers, key=list(PEERS).index)
    others = [name for name in names if name != OURS]
    ours = peers[OURS]
    measured = [metric for metric in METRICS if any(metric in peers[name] for name in names)]
    first = []
    for metric in measured:
        most = bound(metric, peers)
        share = ratio(metric, ours.get(metric), [most] if most else None)
        first.append(
            [f"{METRICS[metric][0]}, {METRICS[metric][1]}", spread(ours.get(metric))]
            + ["–" if most is None else number(most), "–" if share is None else f"{share:.2f}"]
            + [spread(peers[name].get(metric)) for name in others]
        )
    second = []
    for metric in measured:
        ratios = [ratio(metric, ours.get(metric), peers[name].get(metric)) for name in others]
        second.append([METRICS[metric][0]] + ["–" if value is None else f"× {value:.2f}" for value in ratios])
    lines = [f"## {mode}", "", MODES[mode], ""] + table(["load", OURS, "bound", "of it", *others], first)
    lines += ["", "kmsfs against each: × 2 is twice as fast, or half the time or memory.", ""]
    return lines + table(["load", *others], second) + [""]


def report(facts, values, failures):
    lines = ["# kmsfs and others, measured", ""]
    lines += ["Made by `bench/run.sh`; read ratios within a row, not across machines.", ""]
    lines += [f"- {name}: {text}" for name, text in facts]
    lines += [
        "",
        "The bound is what no daemon can pass: for what ends on the disk, the time of the disk's own file system and "
        "that of a file system in memory on the same transport together; for what caches serve, the latter alone; for "
        "streams, the slower of the two. Next to it is how much of that kmsfs reaches.",
    ]
    lines += ["", "Each cell: the median of the rounds (the least–the most). ![ratios](RESULTS.svg)", ""]
    for mode in values:
        lines += tables(mode, values[mode])
    if failures:
        lines += ["## What failed", ""] + [f"- {failure}" for failure in failures] + [""]
    lines += ["## What is measured", ""]
    present = {peer for mode in values.values() for peer in mode}
    lines += table(["file system", "how"], [[name, text] for name, text in PEERS.items() if name in present])
    meanings = [[name, text] for name, _, _, text in METRICS.values() if text]
    return "\n".join(lines + [""] + table(["load", "meaning"], meanings)) + "\n"


# The loads of the chart: one number for each kind.
CHARTED = [
    "create", "replace", "unlink", "read_warm", "read_warm_4", "read_evicted_p50", "read_cold", "stat_cold",
    "stat_warm", "ls_cold", "ls_warm", "untar", "remove", "mixed", "beside_p99", "createsync", "createsync_4",
    "stream_write", "stream_cold", "stream_warm", "random_read", "random_write", "memory",
]  # fmt: skip

LEFT, WIDTH, ROW, TOP, GAP = 170, 330, 22, 110, 40


def place(value, least, most):
    return (math.log10(value) - least) / (most - least) * WIDTH


def panel(mode, peers, offset, colours, span):
    """One mode: a line a load, a dot a file system, right of the middle line where kmsfs is ahead."""
    least, most = span
    height = len(CHARTED) * ROW
    out = [f'<text x="{offset}" y="{TOP - 26}" font-weight="bold">{mode}</text>']
    for power in range(math.floor(least), math.ceil(most) + 1):
        for step in (1, 2, 5):
            mark = step * 10.0**power
            if not least <= math.log10(mark) <= most:
                continue
            x = f"{offset + place(mark, least, most):.1f}"
            colour = "#555" if mark == 1 else "#e3e3e3"
            out.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{TOP + height}" stroke="{colour}"/>')
            out.append(f'<text x="{x}" y="{TOP - 6}" text-anchor="middle" fill="#777" font-size="10">{mark:g}</text>')
    for index, metric in enumerate(CHARTED):
        y = TOP + index * ROW + ROW / 2
        out.append(f'<line x1="{offset}" y1="{y}" x2="{offset + WIDTH}" y2="{y}" stroke="#f0f0f0"/>')
        for name, colour in colours.items():
            value = ratio(metric, peers[OURS].get(metric), peers.get(name, {}).get(metric))
            if value:
                x = offset + place(min(max(value, 10**least), 10**most), least, most)
                title = f"<title>{METRICS[metric][0]}: kmsfs × {value:.2f} of {name}</title>"
                dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" fill-opacity="0.85">'
                out.append(dot + title + "</circle>")
    return out


def chart(values):
    names = [name for name in PEERS if name != OURS and any(name in peers for peers in values.values())]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    ratios = [
        value
        for peers in values.values()
        for name in names
        for metric in CHARTED
        if (value := ratio(metric, peers[OURS].get(metric), peers.get(name, {}).get(metric)))
    ]
    logs = [math.log10(value) for value in ratios] or [0.0]
    # At least from a half to twice, at most from a hundredth to a hundred times; what lies beyond stands at the edge.
    span = (max(-2.0, min(-0.3, min(logs) - 0.1)), min(2.0, max(0.3, max(logs) + 0.1)))
    width = LEFT + len(values) * (WIDTH + GAP)
    height = TOP + len(CHARTED) * ROW + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<text x="10" y="20" font-size="15" font-weight="bold">How many times as fast as each is kmsfs</text>',
        '<text x="10" y="38" fill="#777">right of 1: kmsfs is ahead (less time, less memory, more a second)</text>',
    ]
    x = 10
    for name, colour in colours.items():
        out.append(f'<circle cx="{x + 5}" cy="53" r="5" fill="{colour}"/><text x="{x + 14}" y="57">{name}</text>')
        x += 28 + 7 * len(name)
    for index, metric in enumerate(CHARTED):
        y = TOP + index * ROW + ROW / 2 + 4
        out.append(f'<text x="{LEFT - 12}" y="{y:.1f}" text-anchor="end">{METRICS[metric][0]}</text>')
    for index, (mode, peers) in enumerate(values.items()):
        out += panel(mode, peers, LEFT + index * (WIDTH + GAP), colours, span)
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    facts_path, raw_path, results, picture = sys.argv[1:]
    facts, values, failures = read(facts_path, raw_path)
    if not values:
        sys.exit("nothing was measured")
    text = report(facts, values, failures)
    Path(results).write_text(text)
    Path(picture).write_text(chart(values))
    print(text, end="")


if __name__ == "__main__":
    main()
