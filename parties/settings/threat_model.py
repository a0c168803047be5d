"""The threat model as one text, which is shown wherever a user meets it."""

THREAT_MODEL = {
    "parties": "semi-honest and non-colluding; the dealer is trusted for randomness only",
    "network": "an active attacker; every link is mutual TLS, a certificate's name is its party's id",
    "protects": "the text from all but the data owner, the weights from all but the model owner",
    "leaks": (
        "to both owners and the dealer: architecture, forms, calibrated ranges, number of batches, batch sizes and"
        " padded lengths; to both owners: true lengths, and one bit for each sentence: whether an activation left"
        " its range; to the data owner: the logits; to the coordinator: logits and labels"
    ),
}


def threat_model(embeddings: str) -> dict[str, str]:
    """Return the threat model of one run; with public embedding tables the data owner learns these too."""
    if embeddings == "private_table":
        return dict(THREAT_MODEL)
    more = "; to the data owner also: the word, position and token-type embeddings (--embeddings public_table)"
    return THREAT_MODEL | {"leaks": THREAT_MODEL["leaks"] + more}
