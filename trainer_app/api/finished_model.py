"""Whether the files of a completed run's model are there, as far as a look at the folder tells."""

from __future__ import annotations

from trainer_app import artifacts
from trainer_app.api import current
from trainer_app.restore import damage, damaged_file
from trainer_app.store import runs
from trainer_app.store.runs import Run
from trainer_app.store.uploads import DATA_BANK


def damage_of(run: Run) -> str | None:
    """What is wrong with the model, by its manifest and the sizes of its files; None: nothing.

    What the data bank has is fetched back by whoever needs it. Bytes that have changed are found
    where the model is read.
    """
    if run.artifact_storage == DATA_BANK:
        return None
    directory = artifacts.model_directory(current.settings(), run.run_id)
    name = damaged_file(directory, sealed=run.artifact_sha256)
    if name is None:
        return None
    # It may have been uploaded, and cleaned up here, since the row was read.
    if runs.get(current.database(), run.run_id).artifact_storage == DATA_BANK:
        return None
    return damage(run.run_id, name)
