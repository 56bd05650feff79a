"""The page; Streamlit runs this file from top to bottom for every user and every click."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import altair as alt
import streamlit as st

from tagi_lightning.ui.serving import served
from tagi_lightning.ui.workbench import Comparison, MadeAdapter, Workbench

FIRST_INPUTS = 2


@dataclass
class Session:
    """What one user has on the page.

    Attributes:
        made: The adapter.
        compared: Its answers beside those without it.
        archive: Its PEFT folder.
        inputs: Fields for inputs; more are added one by one.
    """

    made: MadeAdapter | None = None
    compared: Comparison | None = None
    archive: bytes | None = None
    inputs: int = FIRST_INPUTS


def render(bench: Workbench, session: Session) -> None:
    """Draws the page for one user."""
    st.title("An adapter from an instruction", anchor=False)
    model = bench.loaded.model
    facts = f"{model.source or 'model'} on {model.backbone.name}, rank {model.config.lora.rank}"
    st.text(f"A hypernetwork reads what the task is and writes a LoRA for it. {facts}.")
    ask(bench, session)
    if session.made is not None:
        show(session.made, bench.known is not None)
        compare(bench, session, session.made)
        download(bench, session, session.made)


def ask(bench: Workbench, session: Session) -> None:
    """Takes an instruction, and makes its adapter."""
    with st.form("ask", border=False):
        text = st.text_area(
            "Instruction", key="instruction", placeholder="Write the last bird of the list.", height="content"
        )
        examples = []
        for number in range(1, bench.loaded.prompts.demonstrations + 1):
            left, right = st.columns(2)
            given = left.text_area(f"Example {number}: input (optional)", height=68)
            examples.append((given, right.text_area(f"Example {number}: output", height=68)))
        wanted = st.form_submit_button("Make the adapter", type="primary")
    if wanted:
        with told(), st.spinner("Reading the instruction ..."):
            session.made = bench.adapt(bench.instruction(text, examples))
            session.compared = session.archive = None


def show(made: MadeAdapter, compared: bool) -> None:
    """Shows what was made."""
    st.subheader("The adapter", anchor=False)
    instruction = made.adapter.instruction
    st.code(instruction.text, language=None, wrap_lines=True)
    figures = st.columns(4)
    figures[0].metric("Time to make it", f"{made.seconds:.2f} s")
    figures[1].metric("Instruction", f"{made.tokens} tokens")
    figures[2].metric("Examples read", len(instruction.demonstrations))
    figures[3].metric("Norm of the update", f"{made.norm:.2f}")
    left, right = st.columns(2, gap="large")
    with left:
        st.text("Norm of the update in every block")
        st.altair_chart(norm_map(made.norms))
    with right:
        st.text("Nearest known tasks, by the cosine of the updates")
        if compared:
            rows = [{"task": plain(name), "cosine": f"{cosine:.3f}"} for name, cosine in made.nearest]
            st.table(rows, hide_index=True)
        else:
            st.text("None are given: start with --tasks FOLDER or FILE.jsonl.")


def norm_map(norms: Mapping[str, Sequence[float]]) -> alt.Chart:
    """Returns norms by place and block as a heat map."""
    rows = [
        {"place": place, "block": block, "norm": norm}
        for place, values in norms.items()
        for block, norm in enumerate(values)
    ]
    chart: alt.Chart = alt.Chart(alt.Data(values=rows), height=100 + 24 * len(norms)).mark_rect()
    return chart.encode(
        alt.X("block:O").axis(labelAngle=0, labelOverlap=True),
        alt.Y("place:N").sort(None).title(None).axis(labelLimit=200),
        alt.Color("norm:Q").scale(scheme="viridis").title("norm"),
        alt.Tooltip(["place:N", "block:O", "norm:Q"]),
    )


def compare(bench: Workbench, session: Session, made: MadeAdapter) -> None:
    """Takes inputs, and shows answers with the adapter and without."""
    st.subheader("Try it", anchor=False)
    with st.form("compare", border=False):
        fields = min(session.inputs, bench.limits.inputs)
        inputs = [st.text_area(f"Input {number}", height=68) for number in range(1, fields + 1)]
        with st.container(horizontal=True):
            wanted = st.form_submit_button("Compare", type="primary")
            more = st.form_submit_button("One more input", disabled=fields == bench.limits.inputs)
    if more:
        session.inputs = fields + 1
        st.rerun()
    if wanted:
        with told(), st.spinner("Answering with the adapter and without ..."):
            session.compared = bench.compare(made, inputs)
    if session.compared is not None:
        answers(session.compared)


def answers(compared: Comparison) -> None:
    """Shows answers side by side, a row an input."""
    widths = [1] * (1 + len(compared.answers))
    for column, title in zip(st.columns(widths), ["Input", *compared.answers], strict=True):
        column.markdown(f"**{title}**")
    for number, (text, cut) in enumerate(zip(compared.inputs, compared.cut, strict=True)):
        row = st.columns(widths)
        row[0].code(text, language=None, wrap_lines=True)
        if cut:
            row[0].caption("longer than the model reads; its end was left out")
        for column, given in zip(row[1:], compared.answers.values(), strict=True):
            column.code(given[number] or "(nothing)", language=None, wrap_lines=True)


def download(bench: Workbench, session: Session, made: MadeAdapter) -> None:
    """Makes the PEFT folder, and gives it to the browser."""
    st.subheader("Take it along", anchor=False)
    if bench.exporter.loses:
        st.info(plain(bench.exporter.loses))
    if st.button("Make the PEFT folder"):
        with told(), st.spinner("Writing it, and loading it back through PEFT ..."):
            session.archive = bench.archive(made)
    if session.archive is not None:
        name = f"{made.adapter.instruction.folder_name}.zip"
        st.text("Loaded through PeftModel.from_pretrained: the logits are those of the LoRA here.")
        size = len(session.archive) / 1e6
        st.download_button(f"Download {name} ({size:.1f} MB)", session.archive, name, "application/zip", "archive",
                           on_click="ignore", type="primary")  # fmt: skip


@contextmanager
def told() -> Iterator[None]:
    """Shows what was wrong with a request in words."""
    try:
        yield
    except (ValueError, OSError) as error:  # all errors that are told are among them
        st.error(plain(str(error)))


def plain(text: str) -> str:
    """Returns a text in which Markdown finds nothing to set."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


st.set_page_config("tagi", layout="wide")
render(served(), st.session_state.setdefault("session", Session()))
