"""What each optimizer keeps per parameter: a row per optimizer, a kind of `rules.RULES` per entry.

To support another optimizer, add its row under the name of its class; subclasses find it too. Optimizers of one name
in several libraries share a row (Adafactor in torch and transformers, Lion and Muon in their authors' code).
"""

from __future__ import annotations


_ADAM = {"step": "keep", "exp_avg": "first", "exp_avg_sq": "second", "max_exp_avg_sq": "second"}

OPTIMIZERS: dict[str, dict[str, str]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "NAdam": {**_ADAM, "mu_product": "keep"},
    "RAdam": _ADAM,
    "Adamax": {"step": "keep", "exp_avg": "first", "exp_inf": "largest"},
    "SGD": {"momentum_buffer": "first"},
    "Muon": {"momentum_buffer": "first"},
    "MuonAdamW": {**_ADAM, "momentum_buffer": "first"},
    "Lion": {"exp_avg": "first"},
    "RMSprop": {"step": "keep", "square_avg": "centred", "momentum_buffer": "first", "grad_avg": "mean"},
    "Adagrad": {"step": "keep", "sum": "second"},
    "Adadelta": {"step": "keep", "square_avg": "second", "acc_delta": "second"},
    "Adafactor": {  # torch's names, then transformers'
        "step": "keep",
        "row_var": "row_kept",
        "col_var": "col_kept",
        "variance": "second",
        "exp_avg": "first",
        "exp_avg_sq_row": "row",
        "exp_avg_sq_col": "col",
        "exp_avg_sq": "second",
        "RMS": "keep",
    },
}
