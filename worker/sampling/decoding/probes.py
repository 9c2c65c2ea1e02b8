"""What a chat template is tried out with, to see what it writes and what it leaves out."""

from worker.training.data.chat_template import ChatTemplate, ChatTemplateError

NAME = "qm7probexz4"
"""Name of a function that no chat has."""

QUESTION = {"role": "user", "content": "Q"}
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Probe.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Probe."}},
            "required": ["city"],
        },
    },
}
ARGUMENTS = '{"city": "Bern"}'
CALL = {"id": "call00000", "type": "function", "function": {"name": NAME, "arguments": ARGUMENTS}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


def writes_tools(template: ChatTemplate) -> bool:
    """Whether the template tells the model which tools it has."""
    try:
        return NAME in template.render([QUESTION], [TOOL], add_generation_prompt=True)
    except ChatTemplateError:
        return False


def writes_calls(template: ChatTemplate) -> bool:
    """Whether the template writes the tool calls of earlier answers."""
    try:
        return NAME in template.render(template.adapt([QUESTION, CALLING]))
    except ChatTemplateError:
        return False
