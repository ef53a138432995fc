"""The words of the support desk: what customers call a thing, how they say what they need, and what surrounds it.

Data only; `support_desk.py` puts it together. A phrasing is one need said about one name of a thing.
"""

from __future__ import annotations

TOPICS: dict[str, tuple[str, ...]] = {
    "order": ("order", "purchase", "shopping", "basket", "web order", "goods", "cart", "items", "latest buy"),
    "parcel": ("parcel", "package", "shipment", "delivery", "box", "consignment", "packet", "freight", "mail piece"),
    "subscription": (
        "subscription", "membership", "monthly plan", "contract", "tariff", "season pass", "bundle", "renewal",
        "flat rate",
    ),
    "account": (
        "account", "profile", "login", "user name", "customer page", "password", "credentials", "registration",
        "user data",
    ),
    "card": (
        "debit card", "credit card", "bank card", "visa", "payment card", "mastercard", "plastic",
        "charge card", "chip card",
    ),
    "invoice": (
        "invoice", "bill", "receipt", "statement", "proof of payment", "payment slip", "tax document",
        "billing letter", "tab",
    ),
    "voucher": (
        "voucher", "coupon", "promo code", "discount code", "gift code", "rebate", "store credit", "bonus",
        "reward points",
    ),
    "visit": (
        "appointment", "technician visit", "repair slot", "booking", "time slot", "installation date", "service call",
        "engineer visit", "reservation",
    ),
}  # fmt: skip

# {x} is the thing. The first group goes into a frame ("how do i ..."), the second stands alone.
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cancel": (
        ("cancel {x}", "call off {x}", "get rid of {x}", "stop {x}", "drop {x}", "end {x}", "terminate {x}",
         "revoke {x}"),
        ("i no longer want {x}", "{x} is not needed any more", "i am done with {x}", "please scrap {x}"),
    ),
    "change": (
        ("change {x}", "modify {x}", "edit {x}", "update {x}", "adjust {x}", "alter {x}", "correct {x}",
         "revise {x}"),
        ("{x} is wrong", "there is a mistake in {x}", "{x} needs a correction",
         "something about {x} must be different"),
    ),
    "status": (
        ("track {x}", "check on {x}", "follow {x}", "see the progress of {x}", "get an update on {x}", "look up {x}"),
        ("where is {x}", "any news about {x}", "how far is {x}", "when will {x} be ready", "is {x} on its way",
         "what is going on with {x}"),
    ),
    "lost": (
        ("report {x} as missing", "find {x} again", "recover {x}"),
        ("{x} is gone", "{x} has vanished", "{x} never showed up", "{x} disappeared", "someone took {x}",
         "i lost {x}",
         "there is no trace of {x}", "{x} went astray", "{x} was stolen"),
    ),
    "price": (
        ("pay for {x}", "know the rate for {x}", "get a quote for {x}", "see the fees on {x}"),
        ("how much is {x}", "what does {x} cost", "what is the price of {x}", "is {x} free",
         "why is {x} so expensive",
         "what do you charge for {x}", "which amount is due for {x}", "is there a discount on {x}"),
    ),
    "transfer": (
        ("give {x} to a friend", "hand {x} over to my wife", "pass {x} on to my son", "move {x} to another person",
         "put {x} in my husband's name", "let my sister have {x}", "share {x} with a colleague",
         "make {x} over to my mother", "assign {x} to my neighbour"),
        ("can someone else use {x}", "may my brother take {x}", "my daughter should own {x}"),
    ),
}  # fmt: skip

ANSWERS: dict[str, str] = {
    "cancel": "To cancel the {topic}, open {page} and press Stop.",
    "change": "To change the {topic}, open {page} and press Edit.",
    "status": "The state of the {topic} is shown under {page}, Track.",
    "lost": "Sorry. Report the missing {topic} under {page}, Lost.",
    "price": "The price of the {topic} is listed under {page}, Costs.",
    "transfer": "To pass on the {topic}, open {page} and press Transfer.",
}
PAGES: dict[str, str] = {
    "order": "Shop",
    "parcel": "Deliveries",
    "subscription": "Plans",
    "account": "Settings",
    "card": "Wallet",
    "invoice": "Billing",
    "voucher": "Rewards",
    "visit": "Calendar",
}

DETERMINERS = ("my", "my", "my", "the", "this")
FRAMES = (
    "how do i {v}", "how can i {v}", "i want to {v}", "i need to {v}", "can you {v}", "i would like to {v}",
    "is it possible to {v}",
    "help me to {v}", "i have to {v}", "what must i do to {v}", "we need to {v}", "who can {v}",
)  # fmt: skip
GREETINGS = ("hi", "hello", "hey", "good morning", "dear team", "hi there", "good evening", "hello again")
OPENINGS = ("quick question:", "one thing:", "i am a bit lost,", "sorry to bother you,", "it is urgent,", "as i said,")
DETAILS = (
    "since monday", "from last week", "number {n}", "ref {n}", "i got in may", "for the second time", "before friday",
    "today", "as soon as you can", "from {n}",
)  # fmt: skip
THANKS = ("please", "thanks", "thank you", "many thanks", "cheers", "thx", "kind regards", "please help")
