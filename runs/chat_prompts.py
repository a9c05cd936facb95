"""What people ask a chat model: templates over subjects, people and places."""

from __future__ import annotations

import random
import re

_TEMPLATES = """
What is {subject}, and why does it matter?
Explain {subject} in simple terms.
Explain the difference between {subject} and {subject}.
How are {subject} and {subject} related?
What causes {subject}?
What are the main principles of {subject}?
Describe the history of {subject} in a few paragraphs.
Give an overview of {subject} for a first-year student.
What are common misunderstandings about {subject}?
Which questions about {subject} are still open?
How has {subject} changed the world?
Name five people who contributed to {subject} and say what they did.
Write a quiz of five questions with answers about {subject}.
Discuss how {subject} affects the economy of a country such as {country}.
Provide arguments for and against the claim that {subject} should be taught in every school.
What would happen if there were no {subject}?
Make a table that compares {subject} and {subject}.
Write an introduction to an essay about {subject}.
Give me an analogy that explains {subject}.
What are three books or ideas that one should know about {subject}?
Write a short story about {person} who finds {object} in {country}.
Write a poem of four verses about {object}.
Write a haiku about {activity}.
Write a letter from {person} to {person} about {activity}.
Write a formal email in which {person} asks {person} for a meeting about {subject}.
Write a persuasive advertisement for {object}.
Write a review of a restaurant in {country} that disappointed you.
Write a travel blog post about a week in {country} with a focus on {activity}.
Write a speech that {person} could give at a celebration of {activity}.
Write the opening paragraph of a mystery novel that begins with {object}.
Describe a sunset in {country} through the eyes of {person}.
Write a product description for {object} in less than 80 words.
Write a dialogue in which {person} and {person} argue about {subject}.
Write a fairy tale in which {object} can talk.
Write a diary entry of {person} on the day of a great storm.
Compose a thank-you note from {person} to {person}.
Draft a press release about a new kind of {object}.
Rewrite this sentence so that it sounds polite: "Give me {object} right now."
Pretend to be {person} and answer: what do you think about {subject}?
You are {person}. Introduce yourself and tell me about your day.
Act as {person} and explain to me how to begin with {activity}.
Imagine that you are {object}. Tell the story of your life.
Role-play an interview with {person} about {activity}.
Take the role of a doctor whom {person} asks about {activity}. What do you say?
Speak like a pirate and explain {subject}.
As {person}, give advice to somebody who is afraid of {activity}.
How do I start with {activity}?
Give me ten tips for {activity}.
What equipment does one need for {activity}?
Make a weekly plan for somebody who wants to get better at {activity}.
What are the health benefits of {activity}?
What mistakes do beginners make in {activity}?
Suggest five gifts for {person} who loves {activity}.
Plan a birthday party for {person} with the theme of {subject}.
How can {person} save money every month?
I am {person} and I feel tired after {activity}. What can I do?
Which is better for beginners, {activity} or {activity}? Give reasons.
Create a shopping list for {activity}.
Suggest a name and a slogan for a company that sells {object}.
What is the capital of {country}?
When did {country} become independent?
What language is spoken in {country}?
What food is {country} known for?
Who was the first president or ruler of {country}?
What is the population of {country}?
Which countries share a border with {country}?
Where does {subject} come from?
who invented {subject}
what is the meaning of {subject}
who discovered {subject} and when
how long does {activity} take
List the most important cities of {country} and one fact about each.
Describe the climate of {country}.
Compare {country} and {country} as places to live.
Plan a trip of three days through {country}.
What should a visitor to {country} know about local customs?
Translate to French: {person} bought {object} yesterday.
Translate to Spanish: I have always wanted to try {activity}.
Translate the sentence "{person} lives in {country}" into German, French and Italian.
Correct the grammar: "{person} don't likes {activity} and have never went to {country}."
Turn these words into a sentence: {object}, {country}, {activity}.
Find synonyms for three words that have to do with {subject}.
Classify each as a thing, a place or an idea: {object}, {country}, {subject}.
Which of these does not belong to the others: {object}, {object}, {country}? Explain.
Extract the names and places as JSON: "{person} went to {country} with {object} in {year}."
Extract the year, the country and the object as a list: In {year}, {person} brought {object} from {country}.
Answer with yes or no, and give a reason: does {person} need {object} for {activity}?
Rate the feeling of this review from 1 to 5: "{object} broke after two days, and I will never buy it again."
Rate the feeling: 1. I love {activity}. 2. {country} was too hot. 3. {object} was as expected.
If {person} leaves at {small} o'clock and {activity} takes {small} hours, when is it over?
{person} has {number} coins and finds {small} more every day. How many are there after a week?
A bag has {small} red and {small} blue marbles. What is the probability of drawing a red one?
Solve for x: {small}x + {number} = {large}.
What is {small} percent of {large}?
If {small} workers need {number} days for a wall, how long do {small} workers need?
A car drives {large} miles with {small} gallons. How far does it get with {number} gallons?
The sum of two numbers is {large} and their difference is {small}. What are they?
The corners of a rectangle are (0, 0) and ({small}, {number}). What are its area and perimeter?
Find the mean and the median of {small}, {number}, {large}, {small} and {number}.
A coat costs ${large} and is reduced by {small} percent. What does {person} pay?
{person} earns ${number} an hour and works {small} hours on {small} days. How much is that?
{person} is twice as old as {person} was {small} years ago. What can we say about their ages?
Is {large} a prime number? Show how you find out.
f(x) = {small}x^2 - {number}x + 1. What is f(3)?
There are three boxes, and one holds {object}. Only one of the labels tells the truth. How would you find it?
{person} is taller than {person}, who is taller than {person}. Who is the smallest?
Write a Python function that computes {subject_code}.
Write a Python class for {object_code} with tests.
Write JavaScript that {task}.
Write an SQL query that {query}.
Write HTML for a page about {activity} with a list and a button.
Explain what a {structure} is and show an example in Python.
What is the time complexity of searching a {structure}? Explain.
Compare a {structure} with a {structure}.
How do I implement a {structure} in C++?
Find the error: def f(n): return n * f(n - 1)
Write a regular expression that matches {pattern}, and explain it.
Give a pseudocode for sorting a {structure}.
"""

_SLOTS = {
    "subject": """
        photosynthesis; inflation; black holes; democracy; machine learning; the water cycle; plate
        tectonics; evolution; quantum mechanics; the Renaissance; the French Revolution; gravity; DNA;
        supply and demand; vaccines; the immune system; climate change; renewable energy; the Industrial
        Revolution; the stock market; nuclear fusion; blockchain; electricity; magnetism; algebra;
        probability; statistics; human rights; globalization; the Cold War; World War I; the Roman Empire;
        ancient Egypt; Buddhism; existentialism; utilitarianism; impressionism; jazz; the printing press;
        the Internet; the Big Bang; photography; antibiotics; genetics; ecosystems; biodiversity; the
        nitrogen cycle; acids and bases; thermodynamics; relativity; the periodic table; sleep; memory;
        stress; nutrition; metabolism; volcanoes; earthquakes; hurricanes; ocean currents; deforestation;
        recycling; urbanization; migration; monetary policy; taxation; unemployment; game theory; marketing;
        leadership; teamwork; negotiation; artificial intelligence; neural networks; encryption; databases;
        operating systems; compilers; robotics; semiconductors; superconductivity; the solar system; comets;
        the ozone layer; the placebo effect; the calendar; the alphabet; the telephone; the steam engine;
        chess; football; the Olympic Games; opera; Shakespeare's plays
    """,
    "person": """
        a teacher; a nurse; a retired sailor; a young engineer; a shy student; a chef; a farmer; a
        detective; a king; an astronaut; a librarian; a musician; a painter; a lawyer; a shopkeeper; a
        grandmother; a boy of ten; a robot; a tour guide; a software developer; a scientist; a journalist; a
        coach; a philosopher; a wizard; Anna; Tom; Maria; Mr. Brown; Mrs. Chen; Sarah; David; Emma; Carlos;
        Priya; Kenji; Fatima; Olga; James; Sophie; Albert Einstein; Marie Curie; Abraham Lincoln; Cleopatra;
        Leonardo da Vinci; Sherlock Holmes; a medieval knight; a time traveller
    """,
    "country": """
        France; Japan; Brazil; Kenya; Canada; India; Italy; Egypt; Norway; Mexico; Australia; Turkey; Peru;
        Poland; Thailand; Morocco; Ireland; Greece; China; Vietnam; Spain; Portugal; Cuba; Iceland; South
        Africa; New Zealand; Germany; Argentina; Finland; Nigeria; Chile; Hungary; the Netherlands;
        Switzerland; Indonesia; South Korea; Ghana; California; Scotland; Sicily; Paris; London; Tokyo; New
        York; Rome; Istanbul; Singapore
    """,
    "object": """
        an old key; a red bicycle; a broken clock; a golden ring; a map; a letter; a mirror; a lantern; a
        violin; a smart watch; a coffee machine; a wooden chair; an umbrella; a pair of shoes; a camera; a
        telescope; a book; a lamp; a backpack; a phone; a piano; a candle; a kite; a boat; a suitcase; a
        garden gnome; a toy train; a seashell; a coin; a water bottle; an electric car; a drone; a tent; a
        silver spoon; a photograph; a typewriter; a bridge; a tree
    """,
    "activity": """
        cooking; running; gardening; painting; swimming; reading; learning a language; playing the guitar;
        yoga; hiking; photography; public speaking; baking bread; chess; knitting; cycling; meditation;
        writing a novel; camping; fishing; dancing; programming; volunteering; skiing; surfing; a job
        interview; moving to a new city; studying; raising a puppy; making coffee; saving money; a road
        trip; a wedding; growing tomatoes; bird watching; pottery
    """,
    "subject_code": """
        the factorial of a number; the greatest common divisor; the Fibonacci sequence; a running average;
        the transpose of a matrix; the number of vowels in a text; the longest common prefix; the median of
        a list; all permutations of a string; the distance between two points; a binary search; the power of
        a number; whether brackets are balanced; the sum of the digits of a number; the most frequent words
        of a text
    """,
    "object_code": """
        a bank account; a shopping cart; a playing card; a student; a library; a stack; a queue; a date; a
        timer; a linked list; a matrix; a bicycle; a bookstore; an employee
    """,
    "task": """
        validates an email address; shows the current time; sorts a table; reverses a string; fetches JSON
        and prints it; counts clicks on a button; adds an item to a list; hides a menu; checks a password;
        filters even numbers
    """,
    "query": """
        finds the five best customers; counts orders by month; lists all employees without a manager;
        computes the mean price of each category; deletes duplicate rows; joins customers with their orders;
        finds the second highest salary; selects all books of an author
    """,
    "structure": "linked list; hash table; binary tree; stack; queue; heap; graph; trie; dictionary",
    "pattern": """
        an email address; a phone number; a date; a URL; a hexadecimal colour; an integer; a word in
        capitals
    """,
}


def chat_prompt(draw: random.Random) -> str:
    """One of them."""

    def slot(found: re.Match[str]) -> str:
        name = found[1]
        if name in _NUMBERS:
            return str(draw.randint(*_NUMBERS[name]))
        return draw.choice(_CHOICES[name])

    return re.sub(r"\{(\w+)\}", slot, draw.choice(_LINES))


_LINES = _TEMPLATES.strip().split("\n")
_CHOICES = {name: [" ".join(each.split()) for each in text.split(";")] for name, text in _SLOTS.items()}
_NUMBERS = {"small": (2, 12), "number": (10, 99), "large": (100, 999), "year": (1700, 2020)}
