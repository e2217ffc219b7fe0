"""Verify an evidence bundle of tasktrail without tasktrail: one file, Python 3.9 or later, nothing else.

    python3 -I verify.py evidence.tar --key 'NAME+HASH+KEY'

Guarantees: nothing is written, nothing is fetched, nothing of the bundle is run or trusted by being there; a bundle
that is not exactly as tasktrail writes one is FAILED, with the reason, never a traceback. `--key` is the public key of
the trail's checkpoints: get it from somebody else than whoever gave you the bundle. The same holds of this file: the
one in a bundle may have been changed to say what somebody likes; compare it with one from elsewhere. Formats and
limits: docs/evidence.md of tasktrail.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import cast

from tasktrail.projections.tlog.offline_checks import (
    COSIGNATURE,
    ED25519,
    NAME,
    Bad,
    Check,
    Checkpoint,
    Json,
    Key,
    bad,
    base64_of,
    gap_record,
    hashes,
    head_of,
    is_grown,
    is_included,
    key_of,
    leaf,
    levels_of,
    member,
    own_subjects,
    printable,
    read_bounded,
    read_json,
    task_subjects,
    unpacked,
)
from tasktrail.projections.tlog.offline_ed25519 import ed25519_verified

FORMAT = "tasktrail-bundle/1"
SIGNED_AS = b"tasktrail/bundle/v1\n"
BUNDLE_BYTES_MAX, CHECKPOINTS_MAX = 1 << 30, 256
PROVEN, ASSERTED, REFUSED = "PROVEN", "ASSERTED", "REFUSED"
MISSING, FAILED, UNTRUSTED = "MISSING", "FAILED", "UNTRUSTED"
EXIT = {PROVEN: 0, MISSING: 1, FAILED: 1, UNTRUSTED: 2}
MEANINGS = {
    PROVEN: "in the tree of a checkpoint signed by the key you gave, and signed by a key announced in that tree",
    ASSERTED: "as PROVEN, but who acted is in part only what a peer said: proved is that it was said",
    REFUSED: "in the tree, but no entry that counts, by the exporter's word: it proves nothing",
    MISSING: "something says that it exists, and it is not here",
    FAILED: "not what it is said to be",
}
LIMITS = tuple(
    """\
That what an entry says is true. Proved is that the service recorded it, so, and in this order. Each fact about who \
acted carries its own level (bound, verified, vouched, asserted, claimed), and no proof raises it.
That anything happened when it says: every time is the service's own clock, or what a peer said.
That everything was recorded: what never became an entry is in no proof.
That nothing else belongs to the scope, except where it says 'complete'. Which other tasks, people or times there are \
beside those in the bundle is the exporter's word.
Anything recorded after the bundle's checkpoint.
That others were shown the same history. Whoever holds the key of the checkpoints can sign two; that shows only \
against an earlier checkpoint (--checkpoint) or by a witness that took no part in it (--witness).
That nobody colluded with the holder of the keys, or took them: a signature proves the key, not the person.
What the payloads say: they stay sealed, only their hashes are proved. An `accept` is what a client said, no proof \
that a person agreed.
""".splitlines()
)


class Row:
    """One message of the trail: what the bundle says of it, and what is found."""

    def __init__(self, seq: int) -> None:
        self.seq, self.verdict, self.reason = seq, FAILED, "it could not be checked"
        self.said: Json = {}
        self.body: bytes | None = None
        self.entry: Json = {}
        self.level, self.unproved, self.is_placed = "", "", False

    def is_now(self, verdict: str, reason: str = "") -> None:
        """Set its verdict."""
        self.verdict, self.reason = verdict, reason

    @property
    def is_entry(self) -> bool:
        """Whether it is proved to be an entry."""
        return self.verdict in {PROVEN, ASSERTED}

    def events(self) -> list[Json]:
        """Its events, of which nothing but that they are objects is known."""
        return [cast("Json", one) for one in member(self.entry, "events", list, []) if isinstance(one, dict)]

    def shown(self) -> Json:
        """What is told of it."""
        told: Json = {"stream_seq": self.seq, "verdict": self.verdict, "reason": self.reason}
        for name in ("id", "task_ref", "recorded_at"):
            told[name] = self.entry[name] if isinstance(self.entry.get(name), str) else ""
        told["events"] = []
        with contextlib.suppress(Bad):
            told["events"] = [str(one.get("type", "")) for one in self.events()]
        return {**told, "principal_level": self.level, "unproved": self.unproved}


class Bundle:
    """One bundle, held against the keys of whoever checks it."""

    def __init__(self, files: dict[str, bytes], keys: Sequence[Key], check: Check) -> None:
        self.files, self.keys, self.check = files, keys, check
        self.findings: list[dict[str, str]] = []
        self.told: list[str] = []
        self.rows: dict[int, Row] = {}
        self.proved: set[bytes] = set()
        self.manifest: Json = {}
        self.checkpoints: dict[int, Checkpoint] = {}
        self.newest: Checkpoint | None = None

    def find(self, verdict: str, where: str, reason: str) -> None:
        """Something is not as it should be."""
        self.findings.append({"verdict": verdict, "where": where, "reason": reason})

    @contextlib.contextmanager
    def _reading(self, name: str) -> Generator[None]:
        try:
            yield
        except Bad as why:
            self.find(FAILED if name in self.files else MISSING, name, str(why))

    def _json(self, name: str) -> Json:
        return read_json(self.files[name]) if name in self.files else bad("it is not here")

    def verify(self, witnesses: Sequence[Key], held: Sequence[Checkpoint]) -> None:
        """Check everything that can be checked, whatever fails."""
        with self._reading("manifest.json"):
            self.manifest = self._json("manifest.json")
            self._members()
        with self._reading("consistency.json"):
            self._history(witnesses, held)
        with self._reading("messages.json"):
            self._messages()
        self.rows = {seq: self.rows[seq] for seq in sorted(self.rows)}
        with self._reading("proofs.json"):
            self._inclusions(member(self._json("proofs.json"), "proofs", dict))
        keys = self._keys()
        for row in self.rows.values():
            self._judge(row, keys)
        with self._reading("manifest.sig"):
            self._signature(keys)
        with self._reading("heads.json"):
            self._tasks()
        with self._reading("manifest.json"):
            self._range()
            self._policies()

    def _members(self) -> None:
        if member(self.manifest, "format", str) != FORMAT:
            bad(f"it is not of the format that this file verifies, {FORMAT}")
        told = member(self.manifest, "files", dict)
        for name in sorted({*told, *self.files} - {"manifest.json", "manifest.sig"}):
            if name not in self.files:
                self.find(MISSING, name, "the manifest names it, and it is not here")
            elif name not in told:
                self.find(FAILED, name, "the manifest does not name it")
            elif told[name] != hashlib.sha256(self.files[name]).hexdigest():
                self.find(FAILED, name, "its bytes are not those that the manifest names")

    def _history(self, witnesses: Sequence[Key], held: Sequence[Checkpoint]) -> None:
        """Find the checkpoint that proves, and whether the log only grew between all that are known here."""
        for name in [name for name in self.files if name.startswith("checkpoints/")][:CHECKPOINTS_MAX]:
            with self._reading(name):
                one = Checkpoint.of(self.files[name])
                if name != f"checkpoints/{one.size}" or not self._is_ours(one):
                    bad(f"it is not signed by the key you gave, of {self.keys[0].name}, or is not of this size")
                self.checkpoints[one.size] = one
        self.newest = self.checkpoints.get(member(self.manifest, "checkpoint", int)) if self.manifest else None
        if self.newest is None:
            bad("the checkpoint that is to prove these entries is not here, or not signed by the key you gave")
        proofs = member(self._json("consistency.json"), "proofs", dict)
        for size, one in self.checkpoints.items():
            self._has_grown(one, self.newest, proofs, f"checkpoints/{size}")
        for one in held:
            if self._has_grown(one, self.newest, proofs, "the checkpoint you hold"):
                self.told.append(f"the log only grew since the checkpoint you hold, of size {one.size}")
        for witness in witnesses:
            self._witnessed(witness)

    def _is_ours(self, one: Checkpoint) -> bool:
        return any(one.is_signed(key, self.check) for key in self.keys)

    def _has_grown(self, old: Checkpoint, newest: Checkpoint, proofs: Json, where: str) -> bool:
        same = old.size == newest.size
        if not self._is_ours(old):
            self.find(FAILED, where, "it is not signed by the key you gave")
        elif old.size > newest.size:
            reason = f"its {old.size} leaves are more than the bundle's {newest.size}: the bundle is older, or was cut"
            self.find(FAILED, where, f"{reason}; ask for a newer one")
        elif old.size and not same and str(old.size) not in proofs:
            reason = f"no proof that the log grew from its size is here; ask for one: --holding {old.size}"
            self.find(MISSING, where, reason)
        elif (same and old.text != newest.text) or not is_grown(
            old.size, newest.size, old.root, newest.root, hashes(proofs.get(str(old.size), []))
        ):
            self.find(FAILED, where, f"the {newest.size} leaves do not continue its {old.size}: the log was forked")
        else:
            return True
        return False

    def _witnessed(self, witness: Key) -> None:
        for size in sorted(self.checkpoints, reverse=True):
            at = self.checkpoints[size].cosigned_at(witness, self.check)
            if at is not None:
                self.told.append(f"the witness {witness.name} saw the first {size} entries, {at} s after 1970 began")
                return
        self.find(MISSING, "checkpoints", f"none here is cosigned by the witness {witness.name}")

    def _messages(self) -> None:
        told = member(self.manifest, "files", dict, {}) if self.manifest else {}
        for name in (name for name in {*self.files, *told} if name.startswith("entries/") and NAME.fullmatch(name)):
            row = Row(int(name[len("entries/") : -len(".json")]))
            row.body = self.files.get(name)
            self.rows[row.seq] = row
        for said in member(self._json("messages.json"), "messages", list):
            seq = member(said, "stream_seq", int)
            row = self.rows.setdefault(seq, Row(seq))
            if row.said:
                bad(f"it lists sequence {seq} twice")
            row.said = said

    def _inclusions(self, proofs: Json) -> None:
        for row in self.rows.values():
            is_gap = row.said.get("gap") is True
            body = gap_record(row.seq) if is_gap else row.body
            if body is None:
                row.is_now(MISSING, "it is not here")
            elif self.newest is None:
                row.is_now(FAILED, "no checkpoint that proves it is signed by the key you gave")
            elif not is_included(
                leaf(body), row.seq - 1, self.newest.size, hashes(proofs.get(str(row.seq), [])), self.newest.root
            ):
                row.is_now(FAILED, "these bytes are not in the tree at this place")
            elif is_gap:
                row.is_now(MISSING, "the stream did not hold it; the tree says so")
            else:
                row.is_now(PROVEN)
                with contextlib.suppress(Bad):
                    row.entry = read_json(body)

    def _keys(self) -> dict[str, bytes]:
        """The signing keys: the first one ever announced, signed by itself, and each announced under one before it."""
        keys: dict[str, bytes] = {}
        before = 0
        for row in self.rows.values():
            with contextlib.suppress(Bad):
                for event in row.events() if row.verdict == PROVEN else ():
                    if event.get("type") != "KeyActivated" or event.get("purpose") != "signing":
                        continue
                    public = base64_of(member(event, "public_key", str).replace("-", "+").replace("_", "/") + "=")
                    kid = hashlib.sha256(public).hexdigest()[:16]
                    is_first = not keys and before == row.seq - 1
                    if self._is_signed(row, {kid: public} if is_first else keys):
                        keys = {**keys, kid: public}
                    elif is_first:  # a later one must not pass for the first
                        self.find(FAILED, f"entries/{row.seq}.json", "the first key announced has not signed it")
                        return {}
            before += row.verdict == PROVEN or (row.verdict == MISSING and row.said.get("gap") is True)
        if not keys:
            self.find(FAILED, "keys.json", "no entry here is shown to be the first that announced a signing key")
        return keys

    def _is_signed(self, row: Row, keys: dict[str, bytes]) -> bool:
        public = keys.get(str(row.said.get("key_id")), b"")
        return self.check(public, row.body or b"", base64_of(str(row.said.get("signature"))))

    def _judge(self, row: Row, keys: dict[str, bytes]) -> None:
        """What a message that is in the tree is worth."""
        if row.verdict != PROVEN:
            return
        refused = self.manifest.get("refused")
        refusal = cast("Json", refused).get(str(row.seq)) if isinstance(refused, dict) else None
        try:
            row.entry = row.entry or read_json(row.body or b"")
            if not self._is_signed(row, keys):
                bad("no key that the tree announces signed it")
            if row.said.get("msg_id") != member(row.entry, "id", str):
                bad("it is listed under the id of another entry")
            if row.said.get("subject") not in own_subjects(row.entry):
                bad("it is listed under a subject that is not its own")
            row.events()
            row.level, row.unproved = levels_of(member(row.entry, "authority", dict))
            row.is_now(ASSERTED if row.unproved else PROVEN)
            row.is_placed = True
        except Bad as why:
            row.is_now(*((FAILED, str(why)) if refusal is None else (REFUSED, str(refusal))))
            return
        if refusal is not None:
            reason = f"it is signed and in its place: that it was refused ({refusal}) is only the exporter's word"
            row.is_now(*((REFUSED, str(refusal)) if row.body in self.proved else (FAILED, reason)))
        self.proved.add(row.body or b"")

    def _signature(self, keys: dict[str, bytes]) -> None:
        said = self._json("manifest.sig")
        public, signature = keys.get(member(said, "key_id", str), b""), base64_of(member(said, "signature", str))
        if not self.check(public, SIGNED_AS + self.files.get("manifest.json", b""), signature):
            bad("no key that the tree announces signed the manifest: the bundle was changed, or made by somebody else")

    def _tasks(self) -> None:
        """Tasks that are said to be whole are: by the map of heads, and by the chain of their entries."""
        proofs = {member(one, "subject", str): one for one in member(self._json("heads.json"), "proofs", list)}
        by_subject: dict[str, list[Row]] = {}
        for row in self.rows.values():
            if row.body is not None:
                by_subject.setdefault(str(row.said.get("subject")), []).append(row)
        tasks = {member(one, "task_ref", str): one for one in member(self.manifest, "tasks", list)}
        for ref, task in tasks.items():
            subjects = task_subjects(member(task, "tenant", str), ref)
            whole = [self._is_whole(subject, proofs, by_subject.get(subject, [])) for subject in subjects]
            rows = [row for subject in subjects for row in by_subject.get(subject, [])]
            fine = all(row.is_entry or row.verdict == REFUSED for row in rows)
            if any(row.verdict == REFUSED and not row.is_placed for row in rows):
                self.find(MISSING, f"task {ref}", "that it is whole is not shown: a refused message's subject is not")
            elif self._is_chained(ref, by_subject.get(subjects[0], [])) and all(whole) and fine:
                own, access = (len(by_subject.get(subject, [])) for subject in subjects)
                self.told.append(f"complete: task {ref}, {own} entries of its own, {access} of access to it")

    def _is_whole(self, subject: str, proofs: Json, rows: Sequence[Row]) -> bool:
        try:
            proof = proofs[subject] if subject in proofs else bad("no proof of how many entries it has is here")
            heads = self.newest.heads if self.newest else b""
            head = head_of(heads, subject, hashes(member(proof, "records", list)), hashes(member(proof, "path", list)))
        except Bad as why:
            self.find(FAILED, subject, str(why))
            return False
        last = rows[-1] if rows else None
        if len(rows) < head.total:
            self.find(MISSING, subject, f"it has {head.total} entries, and {len(rows)} are here")
        elif len(rows) > head.total or (last and (last.seq, leaf(last.body or b"")) != (head.last_seq, head.leaf)):
            self.find(FAILED, subject, f"it has {head.total} entries, the last at {head.last_seq}; these are others")
        return len(rows) == head.total

    def _is_chained(self, ref: str, rows: Sequence[Row]) -> bool:
        before = b""
        for number, row in enumerate((row for row in rows if row.verdict != REFUSED), 1):
            prev = hashlib.sha256(before).hexdigest() if before else ""
            if row.is_entry and (row.entry.get("task_seq"), row.entry.get("prev", "")) != (number, prev):
                self.find(MISSING, f"entries/{row.seq}.json", f"what comes before it in task {ref} is not here")
                return False
            before = row.body or b""
        return True

    def _range(self) -> None:
        span = member(self.manifest, "range", list, [])
        if not span:
            return
        if len(span) != 2 or not all(type(one) is int for one in span):  # noqa: PLR2004 - first and last
            bad("its range is none")
        first, last = span
        here = [row for row in self.rows.values() if first <= row.seq <= last]
        if len(here) != last - first + 1:
            self.find(MISSING, "entries", f"of the sequences from {first} to {last}, {len(here)} are here")
        elif all(row.is_entry or row.verdict == REFUSED for row in here):
            self.told.append(f"complete: every sequence from {first} to {last}")

    def _policies(self) -> None:
        absent = member(self.manifest, "policies_absent", list)
        for name in (name for name in self.files if name.startswith("policies/")):
            if name != f"policies/{hashlib.sha256(self.files[name]).hexdigest()}.cedar":
                self.find(FAILED, name, "it is not the policy that its name says")
        for row in (row for row in self.rows.values() if row.is_entry):
            decision = member(row.entry, "authority", dict).get("decision", {})
            named = member(decision, "policy_sha256", str, "")
            if named and f"policies/{named}.cedar" not in self.files and named not in absent:
                self.find(MISSING, f"policies/{named}.cedar", f"the decision of entry {row.seq} names it")


def verify(
    data: bytes,
    keys: Sequence[Key],
    witnesses: Sequence[Key] = (),
    held: Sequence[Checkpoint] = (),
    check: Check = ed25519_verified,
) -> Json:
    """What becomes of a bundle, as `--json` prints it; raises nothing.

    `keys`: those of the log that you trust, at least one. `held`: checkpoints that you had before.
    """
    try:
        bundle = Bundle(unpacked(data), keys, check)
        bundle.verify(witnesses, held)
    except Bad as why:
        bundle = Bundle({}, keys, check)
        bundle.find(FAILED, "archive", str(why))
    found = {row.verdict for row in bundle.rows.values()} | {one["verdict"] for one in bundle.findings}
    verdict = FAILED if FAILED in found else MISSING if MISSING in found else PROVEN
    custody: Json = {}
    with contextlib.suppress(Bad, KeyError):
        custody = read_json(bundle.files["custody.json"])
    newest = bundle.newest
    return {
        "verdict": verdict,
        "bundle_sha256": hashlib.sha256(data).hexdigest(),
        "checkpoint": {"origin": newest.origin, "size": newest.size, "root": newest.root.hex()} if newest else None,
        "scope": bundle.manifest.get("scope"),
        "custody": custody,
        "entries": [row.shown() for row in bundle.rows.values()],
        "findings": bundle.findings,
        "told": bundle.told,
        "not_shown": list(LIMITS),
    }


def untrusted(data: bytes) -> Json:
    """What is said without a key: nothing is proved, and which key it would take."""
    origin = "the log, whose name cannot be read"
    with contextlib.suppress(Bad):
        names = {Checkpoint.of(one).origin for name, one in unpacked(data).items() if name.startswith("checkpoints/")}
        origin = ", ".join(sorted(names)) or origin
    reason = f"give the public key of {origin} with --key; a key that comes with a bundle proves nothing about it"
    finding = {"verdict": UNTRUSTED, "where": "--key", "reason": reason}
    return {"verdict": UNTRUSTED, "bundle_sha256": hashlib.sha256(data).hexdigest(), "findings": [finding]}


def told_of(report: Json) -> Iterator[str]:
    """A report as lines for a person. Text of the bundle is escaped."""
    yield f"bundle      sha256 {report['bundle_sha256']}"
    if report.get("checkpoint"):
        at = report["checkpoint"]
        yield f"checkpoint  {at['origin']}, {at['size']} entries, root {at['root']}; signed by the key you gave"
    for name in ("scope", "custody"):
        if report.get(name):
            yield f"{name:10}  {json.dumps(report[name], sort_keys=True)}"
    rows = report.get("entries", [])
    for row in rows:
        who = row["unproved"] or (row["principal_level"] and f"principal {row['principal_level']}") or "nobody named"
        said = row["reason"] or f"{', '.join(row['events'])}; {who}"
        yield f"{row['stream_seq']:>10}  {row['verdict']:8}  {row['recorded_at']}  {row['task_ref'] or '-'}  {said}"
    for line in report.get("told", []):
        yield f"            {line}"
    for one in report["findings"]:
        yield f"{one['verdict']:10}  {one['where']}: {one['reason']}"
    for verdict in (verdict for verdict in MEANINGS if any(row["verdict"] == verdict for row in rows)):
        yield f"{sum(row['verdict'] == verdict for row in rows):>10}  {verdict:8}  {MEANINGS[verdict]}"
    if report.get("not_shown"):
        yield "What this cannot show:"
        yield from (f"  - {limit}" for limit in report["not_shown"])
    yield f"verdict     {report['verdict']}"


def checked(path: Path, keys: Sequence[str], witnesses: Sequence[str], held: Sequence[Path]) -> Json:
    """The report on the bundle in a file. Raises Bad or OSError when it, or what to check it with, cannot be used."""
    mine = [key_of(one, ED25519) for one in keys if one]
    theirs = [key_of(one, COSIGNATURE) for one in witnesses]
    known = [Checkpoint.of(read_bounded(one, 1 << 18)) for one in held]
    data = read_bounded(path, BUNDLE_BYTES_MAX)
    return verify(data, mine, theirs, known) if mine else untrusted(data)


def show(report: Json, *, as_json: bool) -> None:
    """Print a report; what standard output cannot say, and what a terminal would obey, as its escape."""
    lines = [json.dumps(report)] if as_json else [printable(line) for line in told_of(report)]
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode(sys.stdout.encoding, "backslashreplace"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit codes: 0 PROVEN, 1 MISSING or FAILED, 2 UNTRUSTED or not to be read."""
    parser = argparse.ArgumentParser(description="Verify an evidence bundle of tasktrail.", allow_abbrev=False)
    parser.add_argument("bundle", type=Path)
    key = "public key of the checkpoints, NAME+HASH+KEY or a file that holds it; again for each further one you trust"
    parser.add_argument("--key", action="append", default=[], help=key)
    parser.add_argument("--witness", action="append", default=[], help="public key of a witness that must be in it")
    parser.add_argument("--checkpoint", action="append", type=Path, default=[], help="file with a checkpoint you hold")
    parser.add_argument("--json", action="store_true", help="print one document and nothing else")
    asked = parser.parse_args(arguments)
    try:
        report = checked(asked.bundle, asked.key, asked.witness, asked.checkpoint)
    except (Bad, OSError, ValueError) as why:
        sys.stderr.write(printable(f"{parser.prog}: {why}") + "\n")
        return EXIT[UNTRUSTED]
    show(report, as_json=asked.json)
    return EXIT[report["verdict"]]


if __name__ == "__main__":
    sys.exit(main())
