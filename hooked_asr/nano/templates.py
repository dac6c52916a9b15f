"""The parallel sentences with slots that the grammar fills.

A block is a name with its slots (letter:group, with /lemmas where only some will do), then the
English, the Spanish and the German. Inside braces: the slot's letter; a determiner (a, the, my,
this), or none; nom, acc or dat for German; pl for the plural; +letter for an adjective slot;
"for" and a letter for a word that agrees with a noun elsewhere. The grammar writes the first
capital, "del" and "zum".
"""

from __future__ import annotations

TEMPLATES = """
order-fruit f:fruit
I would like {f a}, please.
quisiera {f a}, por favor.
ich möchte {f a acc}, bitte.

buy-fruit n:number f:fruit
I need {n} {f pl}.
necesito {n} {f pl}.
ich brauche {n} {f pl acc}.

coloured-fruit f:fruit/apple/pear/plum/cherry c:colour/red/green/yellow
she is eating {f a +c}.
ella come {f a +c}.
sie isst {f a acc +c}.

many-fruit n:number c:colour/red/green/yellow f:fruit/apple/pear/plum
{n} {f pl +c}, please.
{n} {f pl +c}, por favor.
{n} {f pl acc +c}, bitte.

sweet-fruit f:fruit q:quality/sweet/cheap/small
{f pl the} are very {q}.
{f pl the} son muy {q for f pl}.
{f pl the nom} sind sehr {q}.

order-food f:food
I would like some {f}, please.
quisiera {f}, por favor.
ich möchte {f acc}, bitte.

food-and-drink f:food d:drink
{f} and {d}, please.
{f} y {d}, por favor.
{f acc} und {d acc}, bitte.

food-with-food f:food g:food
we eat {f} with {g}.
comemos {f} con {g}.
wir essen {f acc} mit {g dat}.

groceries n:number g:grocery f:food
I need {n} {g pl} and some {f}.
necesito {n} {g pl} y {f}.
ich brauche {n} {g pl acc} und {f acc}.

grocery-list g:grocery f:fruit b:food
we have {g pl}, {f pl} and {b}.
tenemos {g pl}, {f pl} y {b}.
wir haben {g pl acc}, {f pl acc} und {b acc}.

served-food q:quality/hot/cold/fresh f:food/soup/bread/rice/fish/chicken/meat
I like {f +q}.
me gusta {f the +q}.
ich mag {f acc +q}.

white-food c:colour/white f:food/rice/bread/chocolate
do you have {f +c}?
¿tienes {f +c}?
hast du {f acc +c}?

served-drink q:quality/hot/cold d:drink/milk/water/tea/coffee
he drinks {d +q} every day.
él bebe {d +q} todos los días.
er trinkt jeden Tag {d acc +q}.

black-drink c:colour/black d:drink/coffee/tea r:family
{r my} drinks {d +c}.
{r my} bebe {d +c}.
{r my nom} trinkt {d acc +c}.

wine c:colour/red/white d:drink/wine f:food
some {d +c} and {f}, please.
{d +c} y {f}, por favor.
{d acc +c} und {f acc}, bitte.

drink-choice d:drink e:drink
would you like {d} or {e}?
¿quieres {d} o {e}?
möchtest du {d acc} oder {e acc}?

drinker r:family d:drink
{r my} drinks {d} in the morning.
{r my} bebe {d} por la mañana.
{r my nom} trinkt morgens {d acc}.

where-food f:food
where is the {f}?
¿dónde está {f the}?
wo ist {f the nom}?

colour-wear r:family x:clothing c:colour
{r my} has {x a +c}.
{r my} tiene {x a +c}.
{r my nom} hat {x a acc +c}.

buy-clothing q:quality/new/cheap/beautiful/long/warm x:clothing/coat/shirt/dress/jacket/skirt/hat
I am looking for {x a +q}.
busco {x a +q}.
ich suche {x a acc +q}.

clothing-colour x:clothing c:colour
{x my} is {c}.
{x my} es {c for x}.
{x my nom} ist {c}.

two-clothes x:clothing/coat/shirt/dress/hat/skirt y:clothing/jacket/cap/scarf/belt c:colour
{x a} and {y a +c}.
{x a} y {y a +c}.
{x a nom} und {y a nom +c}.

plural-clothes c:colour x:footwear q:quality/new/cheap/beautiful/small
{x pl this +c} are {q}.
{x pl this +c} son {q for x pl}.
{x pl this nom +c} sind {q}.

state-clothes x:footwear q:quality/wet/dirty/clean
{x pl my} are {q}.
{x pl my} están {q for x pl}.
{x pl my nom} sind {q}.

buy-footwear r:family c:colour x:footwear
{r my} is buying {x pl +c}.
{r my} compra {x pl +c}.
{r my nom} kauft {x pl acc +c}.

clothing-price x:clothing n:number
{x the} costs {n} euros.
{x the} cuesta {n} euros.
{x the nom} kostet {n} Euro.

object-price o:object n:number
{o this} costs {n} euros.
{o this} cuesta {n} euros.
{o this nom} kostet {n} Euro.

how-much x:clothing
how much is {x this}?
¿cuánto cuesta {x this}?
was kostet {x this nom}?

travel c:country d:day
on {d} we travel to {c}.
{d the} viajamos a {c}.
am {d} reisen wir nach {c}.

origin r:family c:country
{r my} comes from {c}.
{r my} viene de {c}.
{r my nom} kommt aus {c}.

home r:family c:country
{r my} lives in {c}.
{r my} vive en {c}.
{r my nom} wohnt in {c}.

country-weather c:country w:weather
it is {w} in {c}.
en {c} {w}.
in {c} ist es {w}.

between-countries c:country d:country
from {c} to {d}.
de {c} a {d}.
von {c} nach {d}.

weather w:weather
today it is {w}.
hoy {w}.
heute ist es {w}.

day-weather d:day w:weather
on {d} it was {w}.
{d the} {w past}.
am {d} war es {w}.

today d:day w:weather
today is {d} and it is {w}.
hoy es {d} y {w}.
heute ist {d} und es ist {w}.

job r:family j:job
{r my} is {j a}.
{r my} es {j for r}.
{r my nom} ist {j for r}.

job-place r:family j:job c:country
{r my} is {j a} in {c}.
{r my} es {j for r} en {c}.
{r my nom} ist {j for r} in {c}.

age r:family n:number/twenty/thirty/forty/fifty
{r my} is {n} years old.
{r my} tiene {n} años.
{r my nom} ist {n} Jahre alt.

child-age r:family/son/daughter/brother/sister n:number
{r my} is {n} years old.
{r my} tiene {n} años.
{r my nom} ist {n} Jahre alt.

siblings n:number/two/three/four/five/six r:family/brother/sister/son/daughter
I have {n} {r pl}.
tengo {n} {r pl}.
ich habe {n} {r pl acc}.

family-where r:family p:room
{r my} is in {p the}.
{r my} está en {p the}.
{r my nom} ist in {p the dat}.

see-animal a:animal q:quality/big/small/old/beautiful
I see {a a +q}.
veo {a a +q}.
ich sehe {a a acc +q}.

animal-colour c:colour/black/white/brown/grey a:animal r:family
{r my} has {a a +c}.
{r my} tiene {a a +c}.
{r my nom} hat {a a acc +c}.

animal-where a:animal p:room
{a the} is in {p the}.
{a the} está en {p the}.
{a the nom} ist in {p the dat}.

many-animals n:number a:animal b:animal
{n} {a pl} and {b a}.
{n} {a pl} y {b a}.
{n} {a pl nom} und {b a nom}.

animal-likes a:animal q:quality/big/small/old
{a the +q} is sleeping.
{a the +q} duerme.
{a the nom +q} schläft.

object-where o:object f:furniture/table/chair/bed/sofa
{o the} is on {f the}.
{o the} está en {f the}.
{o the nom} ist auf {f the dat}.

object-room c:colour o:object p:room
{o the +c} is in {p the}.
{o the +c} está en {p the}.
{o the nom +c} ist in {p the dat}.

my-object o:object
where is {o my}?
¿dónde está {o my}?
wo ist {o my nom}?

new-object q:quality/new/big/small/old/cheap/clean o:object
I need {o a +q}.
necesito {o a +q}.
ich brauche {o a acc +q}.

give-object r:family o:object c:colour
{r my} needs {o a +c}.
{r my} necesita {o a +c}.
{r my nom} braucht {o a acc +c}.

open f:furniture/door/window
please open {f the}.
por favor, abre {f the}.
bitte öffne {f the acc}.

find-place p:place
excuse me, where is {p the}?
perdón, ¿dónde está {p the}?
Entschuldigung, wo ist {p the nom}?

go-place p:place d:day
on {d} I am going to {p the}.
{d the} voy a {p the}.
am {d} gehe ich zu {p the dat}.

near-place p:place r:place
{p the} is next to {r the}.
{p the} está al lado de {r the}.
{p the nom} ist neben {r the dat}.

big-place q:quality/big/small/old/new p:place b:quality/beautiful
{p the +q} is very {b}.
{p the +q} es muy {b for p}.
{p the nom +q} ist sehr {b}.

ache b:body
{b my} hurts.
me duele {b the}.
{b my nom} tut weh.

ache-plural b:body/foot/hand/leg/arm/knee/eye/ear/shoulder
{b pl my} hurt today.
hoy me duelen {b pl the}.
heute tun {b pl my nom} weh.

ache-two b:body/head/back/leg/arm d:body/stomach/foot/hand/knee/shoulder
{b my} and {d my} hurt.
me duelen {b the} y {d the}.
{b my nom} und {d my nom} tun weh.

meet g:greeting/hello/good_morning/good_evening r:family
{g}, I am here with {r my}.
{g}, estoy aquí con {r my}.
{g}, ich bin mit {r my dat} hier.

visit d:day r:family
{r my} is coming on {d}.
{r my} viene {d the}.
{r my nom} kommt am {d}.

on-day d:day
on {d}.
{d the}.
am {d}.

cups n:number d:drink/coffee/tea/milk/water
{n} cups of {d}, please.
{n} tazas de {d}, por favor.
{n} Tassen {d acc}, bitte.

polite g:greeting
{g}.
{g}.
{g}.

one-word o:object
{o the}.
{o the}.
{o the nom}.

two-worn r:family x:clothing c:colour y:clothing d:colour
{r my} has {x a +c} and {y a +d}.
{r my} tiene {x a +c} y {y a +d}.
{r my nom} hat {x a acc +c} und {y a acc +d}.

family-travel d:day r:family c:country
on {d} {r my} travels to {c}.
{d the} {r my} viaja a {c}.
am {d} reist {r my nom} nach {c}.

family-eats r:family f:food g:food
{r my} eats {f} with {g}.
{r my} come {f} con {g}.
{r my nom} isst {f acc} mit {g dat}.

animal-by a:animal/cat/dog/bird/mouse c:colour/black/white/grey f:furniture q:quality/old/new
{a the +c} is next to {f the +q}.
{a the +c} está al lado de {f the +q}.
{a the nom +c} ist neben {f the dat +q}.

object-beside o:object c:colour p:object d:colour
{o the +c} is next to {p the +d}.
{o the +c} está al lado de {p the +d}.
{o the nom +c} ist neben {p the dat +d}.

past-weather d:day w:weather c:country
on {d} it was {w} in {c}.
{d the} {w past} en {c}.
am {d} war es {w} in {c}.

needs-two r:family q:quality/new/big/small/cheap o:object n:number p:object
{r my} needs {o a +q} and {n} {p pl}.
{r my} necesita {o a +q} y {n} {p pl}.
{r my nom} braucht {o a acc +q} und {n} {p pl acc}.

shopping r:family n:number f:fruit b:food
{r my} is buying {n} {f pl} and some {b}.
{r my} compra {n} {f pl} y {b}.
{r my nom} kauft {n} {f pl acc} und {b acc}.

family-goes r:family p:place d:day
{r my} is going to {p the} on {d}.
{r my} va a {p the} {d the}.
{r my nom} geht am {d} zu {p the dat}.

breakfast g:grocery f:fruit d:drink
I would like {g a}, {f a} and some {d}.
quisiera {g a}, {f a} y {d}.
ich möchte {g a acc}, {f a acc} und {d acc}.
"""

# What may come before a whole sentence, with its weight.
OPENERS = """
30 | | |
4 | yes, | sí, | ja,
3 | no, | no, | nein,
3 | and | y | und
2 | but | pero | aber
"""

# Short answers and calls with no slots.
FRAGMENTS = """
yes, please. | sí, por favor. | ja, bitte.
no, thank you. | no, gracias. | nein, danke.
how are you? | ¿cómo estás? | wie geht es dir?
very well, thank you. | muy bien, gracias. | sehr gut, danke.
see you tomorrow. | hasta mañana. | bis morgen.
I do not know. | no lo sé. | ich weiß es nicht.
of course. | por supuesto. | natürlich.
that is right. | es verdad. | das stimmt.
where are you? | ¿dónde estás? | wo bist du?
what time is it? | ¿qué hora es? | wie spät ist es?
one moment, please. | un momento, por favor. | einen Moment, bitte.
"""

# The word between stars is said two to four times over.
ECHOES = """
*no*. | *no*. | *nein*.
*yes*. | *sí*. | *ja*.
*please*. | *por favor*. | *bitte*.
that is *very* good. | está *muy* bien. | das ist *sehr* gut.
it is *very* cheap. | es *muy* barato. | es ist *sehr* billig.
it is *very* far. | está *muy* lejos. | es ist *sehr* weit.
"""

# Words that pull each other: either makes the other likely.
COLLOCATIONS = """
white rice, black coffee, cold milk, hot soup, red apple, long coat, red wine, green tea, fresh
bread, fresh fish, yellow pear, green pear, red cherry, white shirt, black shoe, blue dress,
warm jacket, black cat, white horse, brown bear, white sheep, grey mouse, small mouse, big
elephant, old dog, bread butter, bread cheese, fish rice, coffee milk, tea lemon, Spain hot,
Spain sunny, England foggy, Russia cold, Germany cloudy, cup table, book table, key door, bag
chair, car garage, cow garden, station airport, church bridge, mother nurse, father doctor,
sister singer, brother cook, husband engineer, wife teacher, black bag, blue pen, red umbrella,
white plate, hot tea, cold water, Saturday market, Sunday church, Monday school, Friday beach
"""
