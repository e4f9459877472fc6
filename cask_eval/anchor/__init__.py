"""Time stamps of third parties (RFC 3161) over events of the ledger.

What is stamped: the message imprint of a request and of its token is SHA-256, and its 32 bytes are the event's `hash`.
That hash is the SHA-256 of the event's canonical bytes (RFC 8785) without the field `hash`, and it covers the whole
ledger up to that line through `prev`. So a token can be checked without this package, by the number that
`cask-eval status` prints and nothing else:

    openssl ts -verify -digest HEX -token_in -in token.der -CAfile roots.pem -untrusted intermediates.pem

where HEX are the hexadecimal digits of the hash, and token.der is the field `token` of the anchor event after base64.
Whoever wants to start from the data stamps the canonical bytes themselves: `openssl ts -verify -data event.json …`.

What it proves: the event, and with it all before it, existed at the token's time. The anchor event is itself a line of
the ledger, so whatever comes after it was written after that time. Together they bracket an event (`anchor.check`).

`request` builds what is sent, `send` is the only module that uses the network, `token` verifies what comes back against
`roots`, `check` does that for a whole ledger.
"""
