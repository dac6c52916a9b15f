"""Pairs of words a sound or two apart, in sentences that make one of the two far likelier."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MinimalPair:
    """Two words that sound alike, and the sentences in which each belongs.

    A frame has `{}` where the word goes: `frames` ask for `word`, `partner_frames` for `partner`.
    """

    language: str
    word: str
    partner: str
    frames: tuple[str, ...]
    partner_frames: tuple[str, ...]


# A line with the word and its partner, one of the word's frames, one of the partner's.
_ENGLISH = """
rice lice
  I would like some white {}, please. | We eat white {} every day.
  The dog has {} in its fur. | The doctor found {} in my hair.
sheep ship
  The white {} is eating grass. | The farmer has a white {}.
  The {} sails across the sea. | The captain is on the {}.
coat goat
  She is wearing a long {}. | I need a long warm {}.
  The {} is eating grass. | We drink milk from the {}.
bear pear
  The brown {} lives in the forest. | A big brown {} is sleeping.
  I would like a sweet {}. | She is eating a ripe {}.
wine vine
  I would like some red {}. | A glass of red {}, please.
  The grapes grow on the {}. | The green {} grows on the wall.
berry ferry
  She is eating a sweet {}. | The sweet {} is very small.
  We cross the river by {}. | The {} leaves the harbour.
cap cab
  He is wearing a blue {}. | Put the blue {} on your head.
  We took a {} to the airport. | The {} driver is waiting.
bag back
  He carries a heavy {}. | The heavy {} is full of books.
  My {} hurts today. | I sleep on my {}.
pen pan
  I write with a blue {}. | The blue {} is on the book.
  Cook the eggs in the {}. | The hot {} is on the stove.
bed bad
  I sleep in a soft {}. | The soft {} is in the bedroom.
  The weather is very {}. | That is a {} idea.
boat vote
  The little {} is on the lake. | We sail a little {}.
  The people {} on Sunday. | Every {} counts in the election.
thick sick
  That is a very {} book. | The wall is very {}.
  I feel {} today. | The {} child is in hospital.
mouse mouth
  The cat sees a little {}. | A little {} eats the cheese.
  Open your {}, please. | The dentist looks in my {}.
glass grass
  I need a clean {} for water. | Put the clean {} on the table.
  The cow eats the green {}. | The {} in the garden is green.
light right
  Turn off the bright {}. | The bright {} is in the kitchen.
  Turn {} at the corner. | Yes, that is {}.
collect correct
  We go to {} the children. | I want to {} old stamps.
  That answer is {}. | The {} answer is seven.
fly fry
  The birds {} to the south. | Many birds {} over the house.
  First {} the onions in butter. | We {} the eggs for breakfast.
play pray
  The children {} in the garden. | The children {} with the dog.
  They {} in the church. | The priests {} every Sunday.
clouds crowds
  I see grey {} in the sky. | Grey {} bring rain.
  Big {} fill the station. | The singer likes large {}.
long wrong
  That is a very {} road. | The river is very {}.
  Your answer is {}. | Sorry, {} number.
peach beach
  I am eating a sweet {}. | A sweet {} and an apple.
  We swim at the {}. | The {} has white sand.
coast ghost
  We drive along the sunny {}. | The sunny {} of Spain.
  A {} lives in the old castle. | I do not believe in that {}.
tea key
  I would like some hot {}. | A cup of hot {}, please.
  Open the door with the {}. | I lost the {} of my house.
van fan
  He drives a white {}. | The white {} is in the garage.
  Turn on the {}, it is hot. | The {} moves the hot air.
coal goal
  They burn black {} in winter. | The black {} makes a fire.
  The player scored a {}. | That was a beautiful {}.
cold gold
  Today it is very {}. | The water is very {}.
  She has a ring of {}. | He won a {} medal.
pie buy
  I love warm apple {}. | My mother makes apple {}.
  I want to {} a car. | We {} bread at the market.
park bark
  We walk in the {}. | They walk to the {}.
  The dogs {} at night. | I hear the dog {}.
cat cap
  The black {} drinks milk. | My black {} catches mice.
  He puts a {} on his head. | The boy wears a {}.
dog dock
  The big {} barks. | A big {} is in the garden.
  The boat is at the {}. | The ship left the {}.
road load
  We drive on a long {}. | It is a long {} to Spain.
  The lorry carries a heavy {}. | They {} the lorry with boxes.
seat sheet
  Is that an empty {}? | I see an empty {} on the bus.
  Put a clean {} on the bed. | Write it on a {} of paper.
food foot
  They have good {} here. | I like good {} and wine.
  My {} hurts today. | The shoe is on my {}.
three tree
  One, two, {}, four. | I have two or {} brothers.
  The bird sits in the {}. | Apples grow on the {}.
face vase
  The girl has a pretty {}. | I wash my {} with water.
  The flowers are in the {}. | Put the roses in a {}.
sing sink
  They {} a beautiful song. | The birds {} in the morning.
  Wash the plates in the {}. | The kitchen {} is dirty.
"""

_SPANISH = """
perro pero
  El {} duerme en el jardín. | Mi {} come carne.
  Es caro, {} muy bonito. | Hace sol, {} hace frío.
casa caja
  Vivo en una {} grande. | La {} tiene un jardín.
  Los zapatos están en la {}. | Abre la {} de cartón.
pera perra
  Quiero comer una {} dulce. | La {} es una fruta.
  La {} ladra en el jardín. | Mi {} tiene cuatro cachorros.
gato pato
  El {} negro caza ratones. | Mi {} negro bebe leche.
  El {} nada en el lago. | El {} pone huevos.
vaca boca
  La {} da leche. | La {} come hierba.
  Abre la {}, por favor. | El dentista mira mi {}.
vino pino
  Quiero una copa de {} tinto. | El {} tinto es de España.
  El {} es un árbol. | En el bosque hay un {}.
peso beso
  La caja tiene mucho {}. | El médico mira mi {}.
  Ella me da un {}. | Mi madre me da un {}.
carro caro
  El {} rojo tiene ruedas. | El caballo tira del {}.
  El abrigo es muy {}. | Este reloj es {}.
mesa misa
  El libro está en la {}. | La {} grande está en la cocina.
  El domingo vamos a {}. | El cura dice {} en la iglesia.
queso beso
  Quiero pan con {}. | Como jamón y {}.
  La abuela me da un {}. | Dale un {} a tu madre.
"""

_GERMAN = """
Tasse Tasche
  Eine volle {} Kaffee, bitte. | Ich trinke eine {} Tee.
  Das Buch ist in der {}. | Sie trägt eine schwere {}.
Kirsche Kirche
  Ich esse eine rote {}. | Die rote {} ist süß.
  Der Pfarrer ist in der {}. | Die {} hat einen Turm.
Reise Reihe
  Wir machen eine lange {}. | Gute {} nach Spanien.
  Wir sitzen in der ersten {}. | Die Kinder stehen in einer {}.
Katze Tatze
  Die schwarze {} trinkt Milch. | Unsere {} fängt eine Maus.
  Der Bär hebt seine {}. | Der Löwe leckt seine {}.
Wein Bein
  Ich möchte einen roten {}. | Ein Glas {}, bitte.
  Mein {} tut weh. | Er hat sich das {} gebrochen.
Hose Dose
  Er trägt eine lange {}. | Die {} ist mir zu kurz.
  Öffne die {} mit Tomaten. | In der {} sind Bohnen.
Buch Tuch
  Ich lese ein dickes {}. | Das {} ist spannend.
  Sie trägt ein {} um den Hals. | Wisch den Tisch mit dem {} ab.
Fisch Tisch
  Ich esse frischen {}. | Der {} schwimmt im Wasser.
  Das Glas steht auf dem {}. | Wir sitzen am {}.
Haus Maus
  Wir wohnen in einem großen {}. | Das {} hat einen Garten.
  Die Katze fängt die {}. | Die {} frisst den Käse.
Hund Mund
  Der {} bellt im Garten. | Mein {} frisst Fleisch.
  Öffne bitte den {}. | Der Zahnarzt sieht in meinen {}.
"""


def pair_table(language: str, table: str) -> tuple[MinimalPair, ...]:
    """The pairs of a table: the two words, sentences that ask for the first, for the second."""
    lines = table.strip().splitlines()
    blocks = zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    return tuple(_pair(language, *block) for block in blocks)


def _pair(language: str, head: str, frames: str, partner_frames: str) -> MinimalPair:
    word, partner = head.split()
    return MinimalPair(language, word, partner, _frames(frames), _frames(partner_frames))


def _frames(line: str) -> tuple[str, ...]:
    return tuple(frame.strip() for frame in line.split("|"))


PAIRS = pair_table("en", _ENGLISH) + pair_table("es", _SPANISH) + pair_table("de", _GERMAN)
