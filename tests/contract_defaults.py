"""What the contract says of fields that are left out."""

from __future__ import annotations

from typing import Final

TRAIN_DEFAULTS: Final[dict[str, object]] = {
    "model_family": "gpt2",
    "model_size": "small",
    "max_seq_len": 512,
    "num_epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.0005,
    "user_id": 0,
    "device": "auto",
    "precision": "auto",
    "data_num_workers": None,
    "data_pin_memory": None,
    "holdout_fraction": 0.01,
    "test_split_ratio": 0.15,
    "seed": 42,
    "pretrained_run_id": None,
    "freeze_embed": False,
    "gradient_clipping": 1.0,
    "optimizer": "adamw",
    "early_stopping_patience": 5,
    "finetune_lr_cap": 0.00005,
}
