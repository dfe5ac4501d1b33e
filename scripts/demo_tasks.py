#!/usr/bin/env python3
"""The six tasks of the demo model, and the files of demonstrations and tests made from them.

    python3 scripts/demo_tasks.py --out calibration

writes, for every task, NAME.jsonl (256 demonstrations) and NAME.test.jsonl (100 samples).
One row is {"prompt", "response", "answer"}:

  prompt    what the user says (plain text, before any chat template)
  response  everything the assistant should say
  answer    what a checker looks for: the text after the last "#### ", or the whole
            response where there is none

A generation counts as an exact match when, stripped, it equals the response.

The rows depend on nothing but the seed, so they can be regenerated bit for bit.  No prompt
occurs twice in the files, and the training script draws its samples through
`training_samples`, which skips every prompt in them: both files are unseen by the model.

The tasks are easy on purpose (short inputs, written-out steps): a model of four million
weights, trained in an hour on one CPU core, has to get them right nearly always, so that
damage done by pruning experts is visible.  Their texts share little vocabulary, so that a
router has something to tell them apart by.
"""

import argparse
import json
import os
import random

DEMONSTRATIONS = 256
TESTS = 100
SEED = 20240607

NAMES = "Anna Ben Carla David Emma Frank Grace Henry Iris Jack Laura Martin".split()
ITEMS = "apples books coins pens stamps shells marbles cards".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EVENTS = "party exam match concert meeting wedding trip lecture dinner race".split()
RECORD = {"city": "oslo rome paris lima cairo delhi", "pet": "cat owl bee fox",
          "color": "pink gray gold teal", "food": "cake bean corn",
          "team": "beta gamma delta omega", "age": ""}  # an age is a number
WORDS = ("stone river garden winter silver mountain letter window candle forest bridge "
         "music summer ocean yellow market pepper doctor engine planet rocket guitar "
         "castle dragon").split()
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def arithmetic(rng):
    """Word problems of two steps; each step is written out before the answer."""
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.randint(5, 49), rng.randint(2, 20)
        c = rng.randint(2, min(20, a + b - 1))
        prompt = f"{name} has {a} {item}, buys {b} more and gives {c} away. How many {item} are left?"
        steps, result = f"{a}+{b}={a + b}\n{a + b}-{c}={a + b - c}", a + b - c
    elif kind == 1:
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 15)
        prompt = f"{name} fills {a} bags with {b} {item} each and finds {c} more. How many {item} in all?"
        steps, result = f"{a}*{b}={a * b}\n{a * b}+{c}={a * b + c}", a * b + c
    else:
        a = rng.randint(12, 49)
        b, c = rng.randint(2, min(20, a - 1)), rng.randint(2, 20)
        prompt = f"{name} had {a} {item}, lost {b} and won {c}. How many {item} now?"
        steps, result = f"{a}-{b}={a - b}\n{a - b}+{c}={a - b + c}", a - b + c
    return prompt, f"{steps}\n#### {result}"


def brackets(rng):
    """The closing brackets that are missing; the open ones are listed first."""
    length = rng.randint(4, 9)
    while True:
        text, stack = [], []
        for _ in range(length):
            if stack and (len(stack) == 4 or rng.random() < 0.45):
                text.append(BRACKETS[stack.pop()])
            else:
                stack.append(rng.choice("([{<"))
                text.append(stack[-1])
        if stack:
            break
    closing = " ".join(BRACKETS[b] for b in reversed(stack))
    return "Close all brackets: " + " ".join(text), f"open {' '.join(stack)}\n#### {closing}"


def calendar(rng):
    """A weekday some days later or earlier; the whole weeks are taken off first."""
    event, day, days = rng.choice(EVENTS), rng.randrange(7), rng.randint(2, 45)
    later = rng.random() < 0.5
    prompt = (f"The {event} was on {DAYS[day]}. Which weekday is {days} days "
              f"{'later' if later else 'earlier'}?")
    weeks, rest = divmod(days, 7)
    result = DAYS[(day + rest if later else day - rest) % 7]
    sign = "+" if later else "-"
    return prompt, f"{days}=7*{weeks}+{rest}\n{DAYS[day]}{sign}{rest}={result}\n#### {result}"


def lookup(rng):
    """Some keys of a small JSON object with their values."""
    keys = rng.sample(list(RECORD), rng.randint(3, 5))
    record = {k: rng.choice(RECORD[k].split() or [rng.randint(10, 99)]) for k in keys}
    asked = rng.sample(keys, rng.randint(1, 3))
    return (f"{json.dumps(record)}\nGive " + ", ".join(f'"{k}"' for k in asked) + ".",
            "\n".join(f"{k}={record[k]}" for k in asked))


def sorting(rng):
    """Three to five different numbers of two digits in ascending order."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    return ("Sort ascending: " + ",".join(map(str, numbers)),
            ",".join(map(str, sorted(numbers))))


def text(rng):
    """Capitals, no vowels, words in reverse order, or letters in reverse order."""
    kind = rng.randrange(4)
    if kind == 3:
        letters = [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(4, 7))]
        return "Spell backwards: " + " ".join(letters), " ".join(reversed(letters))
    words = [rng.choice(WORDS) for _ in range(rng.randint(3, 4))]
    line = " ".join(words)
    if kind == 0:
        return f"Put into capitals: {line}", line.upper()
    if kind == 1:
        return f"Drop the vowels: {line}", "".join(c for c in line if c not in "aeiou")
    return f"Reverse the words: {line}", " ".join(reversed(words))


TASKS = {f.__name__: f for f in (arithmetic, brackets, calendar, lookup, sorting, text)}


def answer_of(response):
    """The part of a response that a checker compares."""
    return response.rsplit("#### ", 1)[-1].strip()


def held_out_rows():
    """{task: (demonstrations, tests)} as lists of rows, the same on every call."""
    result = {}
    for name, make in TASKS.items():
        rng = random.Random(f"{SEED}-{name}")
        rows = {}  # by prompt: no prompt twice, and the first answer stands
        while len(rows) < DEMONSTRATIONS + TESTS:
            prompt, response = make(rng)
            rows.setdefault(prompt, {"prompt": prompt, "response": response,
                                     "answer": answer_of(response)})
        rows = list(rows.values())
        result[name] = rows[:DEMONSTRATIONS], rows[DEMONSTRATIONS:]
    return result


def held_out_prompts():
    return {r["prompt"] for pair in held_out_rows().values() for rows in pair for r in rows}


def training_samples(name, rng, excluded):
    """Endless (prompt, response) pairs of a task, none of them with an excluded prompt."""
    make = TASKS[name]
    while True:
        prompt, response = make(rng)
        if prompt not in excluded:
            yield prompt, response


def main():
    parser = argparse.ArgumentParser(description="Write the demo's demonstrations and tests.")
    parser.add_argument("--out", default="calibration", help="folder to write to")
    out = parser.parse_args().out
    os.makedirs(out, exist_ok=True)
    for name, pair in held_out_rows().items():
        for rows, suffix in zip(pair, (".jsonl", ".test.jsonl")):
            path = os.path.join(out, name + suffix)
            with open(path, "w", encoding="utf-8", newline="\n") as f:
                for row in rows:
                    f.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
