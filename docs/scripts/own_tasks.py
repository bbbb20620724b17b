"""Write the questions of docs/data/own_tasks, two tasks of one's own: sums.jsonl, facts.jsonl.

python docs/scripts/own_tasks.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "data" / "own_tasks"
PAIRS = {
    # kind: (two wordings, pairs)
    "capital": (
        ("The capital of {a} is", "{a}'s capital city is"),
        "France Paris,Italy Rome,Spain Madrid,Germany Berlin,Japan Tokyo,China Beijing,Egypt Cairo,"
        "Russia Moscow,Greece Athens,Portugal Lisbon,Ireland Dublin,Norway Oslo,Sweden Stockholm,"
        "Finland Helsinki,Denmark Copenhagen,Poland Warsaw,Austria Vienna,Hungary Budapest,"
        "Canada Ottawa,Australia Canberra,Cuba Havana,Peru Lima,Chile Santiago,Kenya Nairobi,"
        "Turkey Ankara,Iran Tehran,Iraq Baghdad,Thailand Bangkok,Vietnam Hanoi,Belgium Brussels",
    ),
    "opposite": (
        ("The opposite of {a} is", "If it is not {a}, it is"),
        "hot cold,big small,fast slow,high low,old young,early late,hard soft,light dark,wet dry,"
        "full empty,open closed,rich poor,strong weak,happy sad,near far,long short,wide narrow,"
        "clean dirty,loud quiet,true false,right wrong,up down,left right,heavy light,thick thin,"
        "cheap expensive,safe dangerous,deep shallow,sharp dull,brave cowardly",
    ),
    "past": (
        ("Today they {a}; yesterday they", "The past tense of {a} is"),
        "go went,see saw,eat ate,run ran,take took,give gave,write wrote,speak spoke,"
        "think thought,buy bought,bring brought,teach taught,sleep slept,drink drank,sing sang,"
        "fly flew,know knew,grow grew,throw threw,break broke,choose chose,drive drove,"
        "ride rode,fall fell,win won,sell sold,tell told,feel felt,keep kept,leave left",
    ),
    "young": (
        ("A young {a} is called a", "The baby of a {a} is a"),
        "dog puppy,cat kitten,cow calf,horse foal,sheep lamb,pig piglet,goose gosling,"
        "duck duckling,bear cub,goat kid,frog tadpole,deer fawn,hen chick,swan cygnet,owl owlet",
    ),
    "maker": (
        ("A person who works with {a} is a", "The one whose work is {a} is called a"),
        "bread baker,plants gardener,teeth dentist,law lawyer,numbers mathematician,music musician,"
        "paint painter,wood carpenter,fish fisherman,sheep shepherd,books librarian,ships sailor,"
        "pipes plumber,medicine doctor,students teacher,crops farmer,planes pilot,meat butcher,"
        "clothes tailor,stars astronomer",
    ),
    "material": (
        ("{a} is made from", "To make {a} one needs"),
        "Bread flour,Wine grapes,Cheese milk,Paper wood,Glass sand,Butter cream,Steel iron,"
        "Chocolate cocoa,Cider apples,Leather hide,Silk silkworms,Wool sheep,Bricks clay,"
        "Raisins grapes,Ketchup tomatoes",
    ),
    "next": (
        ("After {a} comes", "The one that follows {a} is"),
        "Monday Tuesday,Tuesday Wednesday,Wednesday Thursday,Thursday Friday,Friday Saturday,"
        "Saturday Sunday,January February,February March,March April,April May,May June,June July,"
        "July August,August September,September October,October November,November December,"
        "one two,two three,three four,four five,five six,six seven,seven eight,eight nine,nine ten",
    ),
    "part": (
        ("A {a} has", "One finds on a {a}"),
        "car wheels,bird feathers,fish fins,tree leaves,book pages,house windows,clock hands,"
        "shirt sleeves,shoe laces,piano keys,guitar strings,boat sails,flower petals,hand fingers,"
        "foot toes,plane wings,elephant tusks,cat whiskers,computer keyboard,castle towers",
    ),
    "colour": (
        ("The colour of {a} is", "When one thinks of {a}, one thinks of the colour"),
        "grass green,snow white,blood red,coal black,lemons yellow,carrots orange,chocolate brown,"
        "ripe_tomatoes red,milk white,bananas yellow,emeralds green,rubies red,sapphires blue,"
        "the_clear_sky blue,elephants grey",
    ),
}


def facts(rng: random.Random) -> list[dict[str, Any]]:
    """Questions with four answers: the right one and three of the same kind."""
    found: list[dict[str, Any]] = []
    for kind, (wordings, text) in PAIRS.items():
        pairs = [tuple(x.replace("_", " ") for x in p.split(" ")) for p in text.split(",")]
        for a, b in pairs:
            for wording in wordings:
                wrong = rng.sample(sorted({y for _, y in pairs} - {b} - {a}), 3)
                choices = [b, *wrong]
                rng.shuffle(choices)
                found.append(
                    {
                        "question": wording.format(a=a),
                        "choices": choices,
                        "gold": choices.index(b),
                        "kind": kind,
                    }
                )
    rng.shuffle(found)
    return found


def sums(rng: random.Random) -> list[dict[str, Any]]:
    """Sums of two numbers from 2 to 30."""
    every = [(a, b) for a in range(2, 31) for b in range(2, 31)]
    return [{"question": f"{a} + {b} =", "answer": str(a + b)} for a, b in rng.sample(every, 500)]


def main() -> None:
    """Write both."""
    rng = random.Random(20261130)
    for name, items in (("facts", facts(rng)), ("sums", sums(rng))):
        lines = "".join(json.dumps(i) + "\n" for i in items)
        (OUT / f"{name}.jsonl").write_text(lines, "utf-8")
        print(name, len(items))


if __name__ == "__main__":
    main()
