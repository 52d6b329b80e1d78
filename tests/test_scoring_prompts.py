"""Messages of every shape, as the text that a model reads."""

import pytest
from models import tiny_tokenizer, tokenizer_of

from peft_dso.scoring import encode_question, encode_row, with_images
from peft_dso.scoring.prompts import rendered


END = (
    "{% if add_generation_prompt %}BOT:{% if enable_thinking is defined and not enable_thinking %} quiet{% endif %}"
    "{% endif %}"
)
TEXT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}" + END
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{{ '\\n' }}{% endfor %}" + END
)
BOTH = TEXT.replace("{{ m.content }}", "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
                    "{{ p.text }}{% endfor %}{% endif %}")  # fmt: skip
TRIMMED = TEXT.replace("m.content }}", "m.content | trim }}<end>")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + TEXT
TOOLS = (
    "{% for m in messages %}{{ m.role }}: {% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endif %}"
    "{{ m.content or '' }}{{ '\\n' }}{% endfor %}{% for t in tools or [] %}{{ t.name }}{% endfor %}" + END
)


def user(content):
    return {"role": "user", "content": content}


def text(value):
    return {"type": "text", "text": value}


def speaker(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


SYSTEM = {"role": "system", "content": "Be brief"}


@pytest.mark.parametrize("template", [TEXT, PARTS, BOTH], ids=["text", "parts", "both"])
@pytest.mark.parametrize(
    "messages",
    [[SYSTEM, user("Who?")], [SYSTEM, user([text("Who?")])], [{**SYSTEM, "content": [text("Be brief")]}, user("Who?")],
     [{**SYSTEM, "content": [text("Be brief")]}, user([{**text("Who?"), "image": None}])]],
)  # fmt: skip
def test_contents_reach_the_template_in_the_form_that_it_shows(template, messages):
    assert rendered(speaker(template), messages, 0) == "system: Be brief\nuser: Who?\nBOT:"


def test_parts_that_a_template_puts_together_are_left_to_it():
    messages = [user([text("Who"), text("left?")])]
    assert rendered(speaker(BOTH), messages, 0) == "user: Wholeft?\nBOT:"
    assert rendered(speaker(TEXT), messages, 0) == "user: Who\nleft?\nBOT:"


def test_a_last_message_of_the_assistant_is_continued():
    for template in (TEXT, TRIMMED):
        for content in ("It was the", [text("It was the")]):
            got = rendered(speaker(template), [user("Who?"), {"role": "assistant", "content": content}], 0)
            assert got == template_start(template) + "assistant: It was the"
        assert rendered(speaker(template), [user("Who?"), {"role": "assistant", "content": ""}], 0).rstrip() == (
            template_start(template) + "assistant:"
        )


def template_start(template):
    return "user: Who?<end>\n" if template == TRIMMED else "user: Who?\n"


def test_messages_of_tools_and_empty_ones():
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "look"}}]}
    messages = [user(""), call, {"role": "tool", "content": "a nurse"}]
    expected = "user: \nassistant: look\ntool: a nurse\nBOT:"
    assert rendered(speaker(TOOLS), messages, 0) == expected
    without = [user(""), {key: value for key, value in call.items() if key != "content"}, messages[2]]
    assert rendered(speaker(TOOLS), without, 0) == expected
    assert rendered(speaker(TOOLS), [user("Who?"), call], 0) == "user: Who?\nassistant: look\nBOT:"


def test_what_a_template_takes_besides():
    tokenizer = tokenizer_of("user : Who ? BOT quiet he she look")
    tokenizer.chat_template = TEXT
    row = {"prompt": [user("Who ?")], "answers": [" he", " she"]}
    question = encode_row(tokenizer, row, chat_template_kwargs={"enable_thinking": False})
    assert tokenizer.decode(question.prompt) == "user : Who ? BOT : quiet"
    assert tokenizer.decode(encode_row(tokenizer, row).prompt) == "user : Who ? BOT :"
    # An answer that is written onto the prompt's last word is still said in its own.
    joined = encode_question(tokenizer, row["prompt"], ["he", "she"], chat_template_kwargs={"enable_thinking": False})
    assert joined == question
    tools = [{"name": "look"}]
    assert rendered(speaker(TOOLS), [user("Who?")], 0, tools=tools) == "user: Who?\nlookBOT:"
    assert rendered(speaker(TEXT), [user("Who?")], 0, chat_template="{{ messages[0].content }}!") == "Who?!"


def test_what_cannot_be_rendered_is_named():
    with pytest.raises(ValueError, match=r"cannot render the prompt .*Be brief.*No system role"):
        rendered(speaker(STRICT), [SYSTEM, user("Who?")], 0)
    for content in (None, 3, ["Who?"]):
        with pytest.raises(ValueError, match="content of a message must be text or a list of parts"):
            rendered(speaker(TEXT), [user(content)], 0)
    with pytest.raises(ValueError, match=r"no text and no picture: \{'type': 'audio'\}"):
        rendered(speaker(TEXT), [user([{"type": "audio"}])], 0)
    with pytest.raises(ValueError, match="1 places for pictures and the row 0"):
        rendered(speaker(TEXT), [user([{"type": "image"}, text("Who?")])], 0)
    with pytest.raises(ValueError, match="has no chat template"):
        rendered(speaker({"tools": TEXT}), [user("Who?")], 0)
    assert rendered(speaker({"default": TEXT, "tools": TOOLS}), [user("Who?")], 0) == "user: Who?\nBOT:"


def test_pictures_are_placed_before_the_first_users_text_beside_a_system_text():
    image = {"type": "image"}
    placed = with_images([SYSTEM, user("Who?"), user("And now?")], 2)
    assert [m["content"] for m in placed] == [[text("Be brief")], [image, image, text("Who?")], [text("And now?")]]
    own = [SYSTEM, user([text("Who?"), image])]
    assert with_images(own, 1)[1]["content"] == [text("Who?"), image]
    assert own[0]["content"] == "Be brief"  # the caller's are left alone
