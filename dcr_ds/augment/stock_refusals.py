"""Refusals that fit any harmful prompt, for prompts that come without an answer.

Answers of data.refusals are not used in their place: they name what their own prompt asked for.
"""

import hashlib

STOCK = (
    "I'm sorry, but I can't help with that. It could seriously hurt someone, and the harm would be hard to undo.",
    "I can't help with this, because it would put people in danger. If something troubles you, talk to a friend.",
    "I'm sorry, but I won't assist with that. What you describe would harm others and break the law.",
    "No, I won't help with something that is meant to cause harm. I would be glad to help you find a lawful way.",
    "I cannot provide that. People could get hurt, and you could face serious consequences yourself.",
    "I'm not able to help with that request. If you are in a difficult situation, there are services that support you.",
    "Sorry, but I can't give instructions for something that harms people. I can help you with a legal alternative.",
    "I won't help with that, since it would cause damage that others have to live with. Please reconsider your plan.",
    "I'm sorry, I can't support this. It is harmful and very likely illegal, and there are better ways.",
    "I can't assist with that. If someone has wronged you, a lawyer, a mediator or the police can help you.",
    "I have to decline, because following this through would injure or frighten other people.",
    "I'm sorry, but that is something I can't take part in. If you feel an urge to do harm, please call a crisis line.",
)


def stock_refusal(prompt: str, seed: int) -> str:
    """One of the stock refusals, by a hash of prompt and seed."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return STOCK[int.from_bytes(digest[:8]) % len(STOCK)]
