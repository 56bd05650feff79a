"""`tagi ui`: a page on which a trained model is tried."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tagi_lightning.cli.command import options_of, say
from tagi_lightning.data.ranges import check_range

if TYPE_CHECKING:
    from tagi_lightning.data.instruction import Instruction


def ui(
    model: str,
    tasks: str | None = None,
    count: int | None = 200,
    backbone: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8501,
    max_instruction_tokens: int = 1024,
    max_input_characters: int = 4000,
    max_inputs: int = 8,
    max_waiting: int = 8,
    max_new_tokens: int | None = None,
    stop_at_newline: bool | None = None,
    device: str = "cpu",
) -> None:
    """Serve a page to write instructions, see their adapters, compare answers and download PEFT folders.

    Args:
        model: Folder of a trained hypernetwork, e.g. runs/demo/model, or id on the Hugging Face hub.
        tasks: Known tasks that adapters are compared with: JSON lines of instructions, or a folder of a task set.
        count: Known tasks at most, evenly spread; null for all.
        backbone: Where the backbone lies; null for where it lay in training.
        host: Address to listen on; others than this machine's own let everyone in who reaches it.
        port: Port to listen on.
        max_instruction_tokens: Longest instruction with its examples, in tokens.
        max_input_characters: Longest input, in characters.
        max_inputs: Inputs answered at once.
        max_waiting: Users whose requests are under way or wait; others are asked to come again.
        max_new_tokens: Longest answer in tokens; null for as the model's run decodes.
        stop_at_newline: Answers end at the first line break; null for as the model's run decodes.
        device: Where to compute, e.g. cuda.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise ValueError("the page needs Streamlit, which is not installed: pip install 'tagi-lightning[ui]'")
    check_range({"--count": count}, least=1, otherwise="null for all tasks")
    check_range({"--max_new_tokens": max_new_tokens}, least=1)
    known = known_tasks(Path(tasks), count) if tasks is not None else []

    from tagi_lightning.cli.quiet import without_loading_bars
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.ui.serving import is_loopback, serve
    from tagi_lightning.ui.workbench import Limits, Workbench

    limits = Limits(max_instruction_tokens, max_input_characters, max_inputs, max_waiting)
    without_loading_bars()
    loaded = InstructedModel.load(model, backbone, device=device)
    generation = loaded.decoding(max_new_tokens=max_new_tokens, stop_at_newline=stop_at_newline)
    bench = Workbench(loaded, known, limits, generation)
    if known:
        say("ui", f"{len(known)} known tasks")
    if not is_loopback(host):
        say("ui", f"everyone who reaches {host}:{port} can use this model, and there is no password")
    serve(bench, host, port)


def known_tasks(path: Path, count: int | None) -> list[Instruction]:
    """Returns the instructions of known tasks, evenly spread over them.

    Raises:
        DataError: If there are none, or one is wrong.
    """
    from tagi_lightning.cli.inspect import read_tasks
    from tagi_lightning.data.instruction import Instruction, read_instructions
    from tagi_lightning.inspection.tasks import evenly_spaced

    if path.is_file():
        return evenly_spaced(read_instructions(path), count)
    tasks = [task for some in read_tasks(path, ["train", "test"], 1).values() for task in some]
    return [Instruction(task.definitions[0], task.demonstrations, task.name) for task in evenly_spaced(tasks, count)]


main = options_of(ui)
