"""Programs: functions on CrypTen's tensors, with a declaration of who puts in what and who learns what.

    import mpcformer
    from mpcformer import owner

    @mpcformer.program(inputs={"x": owner("data", (100, 20)), "w": owner("model", (20, 1))}, reveal={"y": "data"})
    def score(x, w):
        return {"y": (x @ w).sigmoid()}

`mpcformer run FILE` runs such a file between the parties. `dry_run` plans its correlations from the shapes alone, and
counts its rounds and bytes. Only what is declared is ever opened.
"""

from mpcformer.lazy import lazily

__getattr__ = lazily(
    __name__,
    {
        "bert": ("bert_parameters", "bert_program", "bert_words"),
        "declaration": ("Input", "Program", "owner", "program"),
        "planning": ("Plan", "dry_run"),
        "inputs": ("read_input", "read_inputs"),
        "load": ("LoadedProgram", "load_program"),
        "models": ("shared_network",),
        "run": ("run_program",),
    },
)
