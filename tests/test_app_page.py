"""The page in a real browser: the keyboard, a phone, several people, bad input, and nobody else on the line."""

import threading

import pytest
import torch
from browser import CELLS, Visitor, chromium, read, served
from models import tiny_tokenizer
from test_app import CHAT, example_report, steered_model


pytest.importorskip("gradio")

from peft_dso.app import build
from peft_dso.app.engine import SteeredModel


pytestmark = pytest.mark.slow
WORDS = [" he", " she", " they"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def twin():
    """The same model as the page's, asked directly."""
    model, tokenizer = steered_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = model.get_base_model().generation_config.eos_token_id = None
    tokenizer.chat_template = CHAT
    return SteeredModel(model, tokenizer)


@pytest.fixture(scope="module")
def address():
    model, tokenizer = steered_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = model.get_base_model().generation_config.eos_token_id = None
    tokenizer.chat_template = CHAT
    page = build(model, tokenizer, reports={"fair": example_report()}, longest_prompt=40, longest_text=4000)
    with served(page) as url:
        yield url


@pytest.fixture
def visitor(browser, address):
    somebody = Visitor(browser, address)
    yield somebody
    somebody.context.close()


def expected(twin, strength, prompt="The nurse said that"):
    said = twin.compare(prompt, WORDS, {"fair": strength})
    return {
        word: (pytest.approx(b, abs=6e-4), pytest.approx(s, abs=6e-4))
        for word, b, s in zip(said.words, said.base, said.steered, strict=False)
    }


def test_the_keyboard_turns_the_knob(visitor, twin):
    assert visitor.answers() == (0.4, expected(twin, 0.4))
    visitor.page.get_by_label("range slider for Strength of fair").focus()
    visitor.page.keyboard.press("End")
    visitor.wait_for("Steered at 1")
    assert visitor.answers() == (1.0, expected(twin, 1.0))
    visitor.page.keyboard.press("ArrowLeft")
    visitor.wait_for("Steered at 0.99")
    assert visitor.page.locator("#dso-answers").get_attribute("aria-live") == "polite"
    visitor.page.get_by_label("Prompt").first.fill("The driver said that")
    visitor.page.wait_for_timeout(300)
    visitor.turn(0.5)
    visitor.wait_for("Steered at 0.5")
    assert visitor.answers() == (0.5, expected(twin, 0.5, "The driver said that"))
    visitor.tab("Reproduce")
    visitor.wait_for("share * 0.5", "main")
    visitor.wait_for('"dso_strength": 0.5', "main")
    assert not visitor.complaints


def test_two_people_at_opposite_strengths_are_not_mixed(browser, address, twin):
    """Each sees answers of their own strength only, while both turn the knob and somebody writes."""
    people = [Visitor(browser, address) for _ in range(3)]
    record = f"""() => {{ window.seen = []; new MutationObserver(() => window.seen.push(({CELLS})())).observe(
        document.querySelector('#dso-answers'), {{childList: true, subtree: true, characterData: true}}) }}"""
    writer = people.pop()
    writer.tab("Text")
    writer.page.get_by_role("button", name="Write", exact=True).click()
    for person in people:
        person.page.evaluate(record)
    ranges = ([0.1, 0.15, 0.2, 0.25], [1.0, 0.95, 0.9, 0.85])
    for _ in range(3):
        for strengths in zip(*ranges, strict=False):
            for person, strength in zip(people, strengths, strict=False):
                person.turn(strength)
    for person, own in zip(people, ranges, strict=False):
        person.wait_for(f"Steered at {own[-1]:g}")
        assert person.answers() == (own[-1], expected(twin, own[-1]))
        seen = [read(cells) for cells in person.page.evaluate("window.seen") if cells]
        assert len(seen) >= 2 and {strength for strength, _ in seen} <= {*own, 0.4}
        for strength, told in seen:
            assert told == expected(twin, strength)
        assert not person.complaints
    for person in [*people, writer]:
        person.context.close()


def test_texts_come_token_by_token_and_stop(visitor, twin):
    visitor.turn(1)
    visitor.tab("Text")
    visitor.page.get_by_role("button", name="Write", exact=True).click()
    *_, (base, steered) = twin.write(("The nurse said that",) * 2, {"fair": 1.0}, max_new_tokens=48)
    visitor.wait_for(steered.strip(), "#dso-steered")
    visitor.wait_for(base.strip(), "#dso-base")
    assert base != steered

    visitor.page.get_by_role("button", name="Length and temperature").first.click()
    length = visitor.page.get_by_label("number input for Tokens to write").first
    length.fill("4000"), length.blur()
    visitor.page.get_by_role("button", name="Write", exact=True).click()
    grown = "n => document.querySelector('#dso-steered').innerText.split(' ').length > n"
    visitor.page.wait_for_function(grown, arg=60)
    visitor.page.get_by_role("button", name="Stop", exact=True).first.click()
    visitor.page.wait_for_timeout(700)
    stopped = visitor.page.locator("#dso-steered").inner_text()
    visitor.page.wait_for_timeout(700)
    assert visitor.page.locator("#dso-steered").inner_text() == stopped and len(stopped.split()) < 3000
    visitor.page.wait_for_timeout(500)
    assert not [t for t in threading.enumerate() if "(generate)" in t.name]  # nobody writes on in the dark


def test_a_conversation_remembers_its_own_side(visitor, twin):
    visitor.turn(1)
    visitor.tab("Conversation")
    panel = visitor.page.get_by_role("tabpanel").locator("visible=true").first
    panel.get_by_role("button", name="Length and temperature").click()
    length = panel.get_by_label("number input for Tokens to write")
    length.fill("6"), length.blur()
    sides = [[], []]
    for message in ("The nurse", "The clerk"):
        sides = [[*side, {"role": "user", "content": message}] for side in sides]
        *_, texts = twin.write(tuple(sides), {"fair": 1.0}, max_new_tokens=6)
        sides = [[*side, {"role": "assistant", "content": text}] for side, text in zip(sides, texts, strict=False)]
        panel.get_by_role("textbox", name="Message").fill(message)
        panel.get_by_role("button", name="Send").click()
        for number, text in enumerate(texts):
            visitor.page.wait_for_function(
                "([n, t]) => document.querySelectorAll('[role=log]')[n].innerText.replace(/\\s+/g, ' ').includes(t)",
                arg=[number, " ".join(text.split())],
            )
        visitor.page.wait_for_timeout(300)
    assert sides[0] != sides[1]


def test_the_next_message_may_be_written_while_this_one_is_answered():
    model, tokenizer = steered_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = model.get_base_model().generation_config.eos_token_id = None
    tokenizer.chat_template = CHAT
    page = build(model, tokenizer)
    gr = pytest.importorskip("gradio")
    (talk,) = (function.fn for function in page.fns.values() if function.api_name == "talk")
    fields = [step[2] for step in talk("The nurse", None, [], [], 6, 0.0, 1.0)]
    assert len(fields) == 6 and fields[0] == "" and fields[1:] == [gr.skip()] * 5


def test_bad_input_gets_a_message_and_the_page_lives_on(visitor, twin):
    prompt, words = visitor.page.get_by_label("Prompt").first, visitor.page.get_by_label("Answers").first
    for field, value, message in (
        (prompt, "  ", "The prompt is empty"),
        (prompt, "The nurse " * 200, "400 tokens, and at most 40"),
        (prompt, "The nurse " * 400, "4000 letters, and at most 40 tokens"),
        (words, "", "There is no answer"),
        (words, "he, he", "have the same tokens"),
        (words, ",".join(map(str, range(13))), "13 answers; give at most 12"),
    ):
        before = field.input_value()
        field.fill(value)
        visitor.wait_for(message)
        assert message in visitor.page.get_by_role("alert").first.inner_text()
        field.fill(before)
        visitor.page.wait_for_selector("#dso-answers table")
    visitor.turn(7)  # Gradio itself says that this is beyond the slider, and puts it back
    visitor.page.wait_for_selector("text=Value 7 is greater than maximum")
    visitor.turn(0.2)
    visitor.wait_for("Steered at 0.2")
    assert visitor.answers() == (0.2, expected(twin, 0.2))
    refused = visitor.page.request.post(
        f"{visitor.page.url}gradio_api/call/answers", data={"data": ["The", "he", False, None, 7]}
    )
    stream = visitor.page.request.get(f"{visitor.page.url}gradio_api/call/answers/{refused.json()['event_id']}").text()
    assert "event: error" in stream
    visitor.tab("Text")
    visitor.page.get_by_label("Beginning").fill("")
    visitor.page.get_by_role("button", name="Write", exact=True).click()
    visitor.page.wait_for_selector("[role=alert]:has-text('The prompt is empty')")


def test_a_strength_from_the_report(visitor):
    visitor.tab("Report")
    visitor.page.get_by_label("Limit").fill("0.04")
    visitor.page.get_by_role("button", name="Set the strength").click()
    visitor.wait_for("Steered at 0.6")  # see test_a_strength_from_a_budget
    visitor.page.wait_for_selector("img[alt*='the strength is 0.6']")
    visitor.page.get_by_label("Limit").fill("-1")
    visitor.page.get_by_role("button", name="Set the strength").click()
    visitor.page.wait_for_selector("[role=alert]:has-text('No strength from 0 to 1 meets it')")


@pytest.mark.parametrize("width", [1200, 390])
def test_every_control_has_a_name_and_nothing_is_cut_off(browser, address, width, tmp_path):
    somebody = Visitor(browser, address, width=width, height=844)
    for tab in ("Answers", "Text", "Conversation", "Report", "Layers", "Reproduce"):
        somebody.tab(tab)
        somebody.page.wait_for_timeout(300)
        nameless = somebody.page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, button, select')].filter(e => e.offsetParent
            && !(e.labels && [...e.labels].some(l => l.innerText.trim())) && !e.getAttribute('aria-label')
            && !e.innerText.trim() && !e.title).map(e => e.outerHTML.slice(0, 200))"""
        )
        assert not nameless, (tab, nameless)
        wide = somebody.page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
        assert wide <= 0, (tab, wide)
        assert somebody.page.locator("img:not([alt])").count() == 0
    assert somebody.hosts == {address.split("/")[2]}  # nothing is fetched from, or sent to, anybody else
    assert not somebody.complaints
    somebody.context.close()


def test_a_stranger_in_the_page_may_talk_to_nobody(visitor):
    """What the policy is for: a request to elsewhere does not leave the browser."""
    blocked = visitor.page.evaluate("fetch('https://example.org/').then(() => 'left', error => 'blocked')")
    assert blocked == "blocked" and any("Content Security Policy" in text for text in visitor.complaints)
    assert torch.is_grad_enabled()  # no request left a mode behind in this thread
