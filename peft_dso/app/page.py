"""The page: sliders over a model in use, and what they do to its answers and its texts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Optional

import gradio as gr

from ..evaluation import Report
from . import bars, recipes
from .engine import SteeredModel
from .report_tab import add_report
from .serve import Page


# What a person can mend. Anything else is a fault of the page, which Gradio reports without its text.
MENDABLE = (ValueError, TypeError, KeyError)
UNSTEERED, STEERED = "Unsteered", "Steered"


class Controls:
    """
    The parts of the page that several tabs share.

    Args:
        steered (`SteeredModel`): the model.
        sources (`Mapping[str, str]`): by adapter, the folder or name to show in the lines of code.
        model_source (`str`): the same of the base model.
    """

    def __init__(self, steered: SteeredModel, sources: Mapping[str, str], model_source: str) -> None:
        self.steered, self.sources, self.model_source = steered, sources, model_source
        self.sliders: list[Any] = []

    def strengths(self, values: Sequence[Any]) -> dict[str, float]:
        """The sliders' values by adapter."""
        return dict(zip(self.steered.adapters, values, strict=False))

    def prompt(self, text: Optional[str], chat: bool) -> Any:
        """What the model is to read."""
        return [{"role": "user", "content": text or ""}] if chat else text or ""


def answer_list(text: Optional[str], chat: bool) -> list[str]:
    """
    The answers that somebody has typed, as they follow the prompt.

    Raises:
        ValueError: there are more than a table holds, or one is a text.
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if len(words) > 12 or any(len(word) > 80 for word in words):
        raise ValueError(f"There are {len(words)} answers; give at most 12, each of at most 80 letters, with commas.")
    return words if chat else [f" {word}" for word in words]


def add_answers(controls: Controls, prompt: str, answers: str) -> tuple[Any, Any]:
    """The tab with the answers' probabilities; returns the lines that reproduce it, for a tab of their own."""
    steered = controls.steered

    def turn(text: str, words: str, chat: bool, image: Any, *values: Any) -> tuple[str, str, str]:
        try:
            strengths, said = controls.strengths(values), controls.prompt(text, chat or image is not None)
            listed = answer_list(words, not isinstance(said, str))
            table = bars.answers(steered.compare(said, listed, strengths, _images(image)), strengths)
        except MENDABLE as error:
            return bars.problem(error), "", ""
        python = recipes.python_lines(controls.model_source, controls.sources, strengths, said, listed)
        return table, python, recipes.server_request(controls.model_source, controls.sources, strengths, said)

    starts = [slider.value for slider in controls.sliders]
    table, python, request = turn(prompt, answers, False, None, *starts)
    # Made here, shown in a tab further on.
    lines = gr.Code(
        python, language="python", label="In Python", interactive=False, wrap_lines=True, lines=1, render=False
    )
    curl = gr.Code(
        request, language="shell", label="From a server", interactive=False, wrap_lines=True, lines=1, render=False
    )
    with gr.Tab("Answers"):
        text = gr.Textbox(prompt, label="Prompt", info="The model reads this; what comes next?", lines=2)
        words = gr.Textbox(answers, label="Answers", info="Words to compare, with commas between them.")
        chat = gr.Checkbox(False, label="Ask as a message to a chat model", visible=steered.chats)
        image = gr.Image(type="pil", label="Picture", sources=["upload", "clipboard"], visible=steered.sees)
        shown = gr.HTML(table, elem_id="dso-answers")
        gr.Examples(
            [["The nurse said that"], ["The carpenter said that"], ["The nurse, who is a man, said that"]],
            [text],
            label="Other prompts",
        )
    parts = [text, words, chat, image]
    gr.on(
        [slider.change for slider in controls.sliders] + [part.change for part in parts],
        turn,
        [*parts, *controls.sliders],
        [shown, lines, curl],
        show_progress="hidden",
        trigger_mode="always_last",
        api_name="answers",
    )
    return lines, curl


def add_lines(codes: Sequence[Any]) -> None:
    """The tab with the lines that reproduce the answers."""
    with gr.Tab("Reproduce"):
        gr.HTML(bars.note("These lines give what the tab Answers shows, and have a server write at these strengths."))
        for code in codes:
            code.render()


def _images(image: Any) -> list[Any]:
    return [] if image is None else [image]


def add_text(controls: Controls, prompt: str) -> None:
    """The tab with free text, unsteered and steered."""

    def write(text: str, image: Any, length: Any, temperature: Any, *values: Any) -> Iterator[tuple[str, str, str]]:
        try:
            said = controls.prompt(text, image is not None)
            strengths = controls.strengths(values)
            for base, steered in controls.steered.write(
                (said, said), strengths, max_new_tokens=length, temperature=temperature, images=_images(image)
            ):
                yield bars.text(UNSTEERED, base), bars.text(STEERED, steered), ""
        except MENDABLE as error:
            yield bars.text(UNSTEERED), bars.text(STEERED), bars.problem(error)

    with gr.Tab("Text"):
        text = gr.Textbox(prompt, label="Beginning", info="The model writes on from here.", lines=2)
        image = gr.Image(type="pil", label="Picture", sources=["upload", "clipboard"], visible=controls.steered.sees)
        length, temperature = _writing_options(controls.steered)
        with gr.Row():
            go, stop = gr.Button("Write", variant="primary"), gr.Button("Stop")
        problem = gr.HTML("")
        with gr.Row():
            base = gr.HTML(bars.text(UNSTEERED), min_width=260, elem_id="dso-base")
            steered = gr.HTML(bars.text(STEERED), min_width=260, elem_id="dso-steered")
    run = gr.on(
        [go.click, text.submit],
        write,
        [text, image, length, temperature, *controls.sliders],
        [base, steered, problem],
        show_progress="hidden",
        concurrency_limit=4,
        api_name="write",
    )
    stop.click(None, cancels=[run])


def _writing_options(steered: SteeredModel) -> tuple[Any, Any]:
    with gr.Accordion("Length and temperature", open=False):
        length = gr.Slider(1, steered.longest_text, 48, step=1, label="Tokens to write")
        temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 takes the likeliest word each time.")
    return length, temperature


def add_conversation(controls: Controls) -> None:
    """The tab with two conversations, unsteered and steered, that get the same messages."""
    steered = controls.steered

    def talk(
        text: str, image: Any, left: Any, right: Any, length: Any, temperature: Any, *values: Any
    ) -> Iterator[tuple[Any, Any, Any, str]]:
        before = ([*(left or [])], [*(right or [])])
        field: Any = ""  # emptied once: the next message may be written while this one is answered
        try:
            messages = tuple(
                [{"role": m["role"], "content": plain(m["content"])} for m in side]
                + [{"role": "user", "content": text or ""}]
                for side in before
            )
            strengths = controls.strengths(values)
            for texts in steered.write(
                (messages[0], messages[1]), strengths, max_new_tokens=length, temperature=temperature,
                images=_images(image),
            ):  # fmt: skip
                sides = [
                    [*m, {"role": "assistant", "content": t or "..."}] for m, t in zip(messages, texts, strict=False)
                ]
                yield sides[0], sides[1], field, ""
                field = gr.skip()
        except MENDABLE as error:
            yield before[0], before[1], text, bars.problem(error)

    with gr.Tab("Conversation"):
        with gr.Row():
            left = gr.Chatbot(label=UNSTEERED, height=360, min_width=260, buttons=[], feedback_options=None)
            right = gr.Chatbot(label=STEERED, height=360, min_width=260, buttons=[], feedback_options=None)
        problem = gr.HTML("")
        text = gr.Textbox(label="Message", info="Both sides get it, and each remembers what it has said itself.")
        image = gr.Image(type="pil", label="Picture", sources=["upload", "clipboard"], visible=steered.sees)
        with gr.Row():
            send, stop, clear = gr.Button("Send", variant="primary"), gr.Button("Stop"), gr.Button("Begin anew")
        length, temperature = _writing_options(steered)
    run = gr.on(
        [send.click, text.submit],
        talk,
        [text, image, left, right, length, temperature, *controls.sliders],
        [left, right, text, problem],
        show_progress="hidden",
        concurrency_limit=4,
        api_name="talk",
    )
    stop.click(None, cancels=[run])
    clear.click(lambda: ([], [], ""), None, [left, right, problem], cancels=[run], api_visibility="private")


def plain(content: Any) -> str:
    """The text of a message as Gradio keeps it."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))


def add_layers(steered: SteeredModel) -> None:
    """The tab that says what each adapter changes."""
    with gr.Tab("Layers"):
        for name in steered.adapters:
            gr.HTML(bars.note(f"Adapter: {name}") + bars.layers(steered.vectors(name)))


def build(
    model: Any,
    tokenizer: Any,
    *,
    adapters: Optional[Mapping[str, str | os.PathLike[str]]] = None,
    reports: Optional[Mapping[str, Report]] = None,
    model_name: Optional[str] = None,
    prompt: str = "The nurse said that",
    answers: str = "he, she, they",
    highest: float = 1.0,
    longest_prompt: int = 1024,
    longest_text: int = 256,
) -> Page:
    """
    A page with a slider per adapter over a model in use: its answers and its texts, unsteered and steered side by
    side, the report of the adapter, what it changes, and the lines that reproduce the screen.

    Args:
        model (`nn.Module`): a `PeftModel` with DSO adapters, or a plain model with loaded ones; all of them are made
            active. From now on its strengths belong to the page.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer, or processor for pictures.
        adapters (`Mapping[str, str]`, *optional*): by adapter name, the folder or Hub name that it came from: named in
            the lines of code, and read for the report.
        reports (`Mapping[str, Report]`, *optional*): by adapter name; default what lies beside the adapters.
        model_name (`str`, *optional*): the name of the base model; default what its config says.
        prompt (`str`): what stands in the prompt at first.
        answers (`str`): the words that are compared at first, with commas.
        highest (`float`, defaults to 1): the sliders' end, above 0.
        longest_prompt (`int`, defaults to 1024): tokens that a prompt may have.
        longest_text (`int`, defaults to 256): tokens that a text may have.

    Returns:
        `Page`: Gradio blocks; `launch()` serves them on 127.0.0.1, and tells nobody.

    Raises:
        ValueError: the model has no DSO adapter, or `highest` is not a number above 0.
    """
    if not 0 < highest < math.inf:
        raise ValueError(f"highest={highest!r}: the sliders need an end above 0.")
    steered = SteeredModel(model, tokenizer, longest_prompt, longest_text)
    named = {name: str((adapters or {}).get(name, name)) for name in steered.adapters}
    known = _reports(named if adapters else {}, reports or {})
    source = model_name or str(getattr(steered.model.config, "_name_or_path", "")) or "BASE"
    title = Path(str(getattr(steered.model.config, "_name_or_path", "")) or source).name
    controls = Controls(steered, named, source)
    with Page(title="peft_dso: turn the strength", analytics_enabled=False) as page:
        gr.HTML(
            f'<div class="dso-head"><h1>Turn the strength</h1><p>{escape(title)}: 0 is the model '
            "itself, 1 what was trained. Unsteered and steered are computed in one batch.</p></div>"
        )
        for name in steered.adapters:
            controls.sliders.append(
                gr.Slider(0, highest, min(0.4, highest), step=0.01, label=f"Strength of {name}", buttons=["reset"])
            )
        codes = add_answers(controls, prompt, answers)
        add_text(controls, prompt)
        if steered.chats:
            add_conversation(controls)
        for name, slider in zip(steered.adapters, controls.sliders, strict=False):
            add_report(name, slider, known.get(name), single=len(steered.adapters) == 1)
        add_layers(steered)
        add_lines(codes)
    return page


def _reports(named: Mapping[str, str], given: Mapping[str, Report]) -> dict[str, Report]:
    from .reports import find_report

    found = {name: given[name] if name in given else find_report(source) for name, source in named.items()}
    return {name: report for name, report in {**given, **found}.items() if report is not None}
