"""A reviewer's bundle: one zip file with all that verifying one study needs, and nothing else.

It is a small workspace: `bundle.json` (the study, the ledger's head, the digest of every file), `README.txt` for
people, and the files that the verifier reads, at their places. Which ones these are is not listed anywhere: the
verifier loads the study, and `contents` notes what it asks for. So a bundle verifies as the workspace does.

`form` is the one form of zip that is written and read: files stored as they are, one behind the other, every header
field fixed. The same study makes the same bytes on every machine, and whatever a zip can hide (compression bombs,
overlapping or doubled members, links, encryption, lying sizes, a prefix, a tail) is a deviation from that form.
`write` exports, `read` opens what others sent.
"""
