"""The words of the small corpus, in English, Spanish and German, most frequent first.

A line holds one word: the English, the Spanish and the German, parted by bars. Each is a base form,
a second form where there is one (a noun's plural, a job's feminine, the weather's imperfect), and a
noun's gender. An underscore stands for a space, a missing second form repeats the first.
"""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("en", "es", "de")


@dataclass(frozen=True)
class Form:
    """How one language says a word."""

    base: str
    other: str
    gender: str = ""  # m, f or n; "a" is a Spanish feminine that takes "el": "el agua"
    oblique: str = ""  # the accusative and dative singular of a weak German noun: "den Bären"


@dataclass(frozen=True)
class Word:
    """One meaning and its forms in each language."""

    group: str
    en: Form
    es: Form
    de: Form

    @property
    def lemma(self) -> str:
        """The English base form, by which a word is named."""
        return self.en.base

    def form(self, language: str) -> Form:
        """This word's forms in one language."""
        return {"en": self.en, "es": self.es, "de": self.de}[language]


_TABLES = {
    "fruit": """
        apple apples | manzana manzanas f | Apfel Äpfel m
        banana bananas | plátano plátanos m | Banane Bananen f
        orange oranges | naranja naranjas f | Orange Orangen f
        lemon lemons | limón limones m | Zitrone Zitronen f
        pear pears | pera peras f | Birne Birnen f
        peach peaches | melocotón melocotones m | Pfirsich Pfirsiche m
        cherry cherries | cereza cerezas f | Kirsche Kirschen f
        plum plums | ciruela ciruelas f | Pflaume Pflaumen f
        melon melons | melón melones m | Melone Melonen f
        strawberry strawberries | fresa fresas f | Erdbeere Erdbeeren f
        pineapple pineapples | piña piñas f | Ananas Ananas f
    """,
    "food": """
        bread | pan m | Brot n
        rice | arroz m | Reis m
        soup | sopa f | Suppe f
        cheese | queso m | Käse m
        meat | carne f | Fleisch n
        fish | pescado m | Fisch m
        chicken | pollo m | Hähnchen n
        salad | ensalada f | Salat m
        butter | mantequilla f | Butter f
        sugar | azúcar m | Zucker m
        ham | jamón m | Schinken m
        salt | sal f | Salz n
        honey | miel f | Honig m
        chocolate | chocolate m | Schokolade f
        pasta | pasta f | Pasta f
    """,
    "grocery": """
        egg eggs | huevo huevos m | Ei Eier n
        potato potatoes | patata patatas f | Kartoffel Kartoffeln f
        tomato tomatoes | tomate tomates m | Tomate Tomaten f
        cake cakes | pastel pasteles m | Kuchen Kuchen m
        onion onions | cebolla cebollas f | Zwiebel Zwiebeln f
        sandwich sandwiches | bocadillo bocadillos m | Sandwich Sandwiches n
        carrot carrots | zanahoria zanahorias f | Karotte Karotten f
        sausage sausages | salchicha salchichas f | Wurst Würste f
    """,
    "drink": """
        water | agua a | Wasser n
        coffee | café m | Kaffee m
        tea | té m | Tee m
        milk | leche f | Milch f
        wine | vino m | Wein m
        beer | cerveza f | Bier n
        juice | zumo m | Saft m
        lemonade | limonada f | Limonade f
    """,
    "clothing": """
        shirt shirts | camisa camisas f | Hemd Hemden n
        coat coats | abrigo abrigos m | Mantel Mäntel m
        dress dresses | vestido vestidos m | Kleid Kleider n
        jacket jackets | chaqueta chaquetas f | Jacke Jacken f
        hat hats | sombrero sombreros m | Hut Hüte m
        skirt skirts | falda faldas f | Rock Röcke m
        cap caps | gorra gorras f | Mütze Mützen f
        scarf scarves | bufanda bufandas f | Schal Schals m
        belt belts | cinturón cinturones m | Gürtel Gürtel m
    """,
    "footwear": """
        shoe shoes | zapato zapatos m | Schuh Schuhe m
        boot boots | bota botas f | Stiefel Stiefel m
        sock socks | calcetín calcetines m | Socke Socken f
        glove gloves | guante guantes m | Handschuh Handschuhe m
    """,
    "animal": """
        dog dogs | perro perros m | Hund Hunde m
        cat cats | gato gatos m | Katze Katzen f
        horse horses | caballo caballos m | Pferd Pferde n
        bird birds | pájaro pájaros m | Vogel Vögel m
        cow cows | vaca vacas f | Kuh Kühe f
        sheep sheep | oveja ovejas f | Schaf Schafe n
        mouse mice | ratón ratones m | Maus Mäuse f
        pig pigs | cerdo cerdos m | Schwein Schweine n
        goat goats | cabra cabras f | Ziege Ziegen f
        duck ducks | pato patos m | Ente Enten f
        bear bears | oso osos m | Bär Bären m Bären
        rabbit rabbits | conejo conejos m | Kaninchen Kaninchen n
        lion lions | león leones m | Löwe Löwen m Löwen
        frog frogs | rana ranas f | Frosch Frösche m
        monkey monkeys | mono monos m | Affe Affen m Affen
        elephant elephants | elefante elefantes m | Elefant Elefanten m Elefanten
    """,
    "colour": """
        white | blanco | weiß
        black | negro | schwarz
        red | rojo | rot
        blue | azul | blau
        green | verde | grün
        yellow | amarillo | gelb
        brown | marrón | braun
        grey | gris | grau
    """,
    "quality": """
        new | nuevo | neu
        big | grande | groß
        small | pequeño | klein
        old | viejo | alt
        hot | caliente | heiß
        cold | frío | kalt
        beautiful | bonito | schön
        long | largo | lang
        short | corto | kurz
        fresh | fresco | frisch
        clean | limpio | sauber
        dirty | sucio | schmutzig
        cheap | barato | billig
        wet | mojado | nass
        warm | templado | warm
        sweet | dulce | süß
    """,
    "number": """
        one | uno | eins
        two | dos | zwei
        three | tres | drei
        four | cuatro | vier
        five | cinco | fünf
        six | seis | sechs
        seven | siete | sieben
        eight | ocho | acht
        nine | nueve | neun
        ten | diez | zehn
        eleven | once | elf
        twelve | doce | zwölf
        fifteen | quince | fünfzehn
        twenty | veinte | zwanzig
        thirty | treinta | dreißig
        forty | cuarenta | vierzig
        fifty | cincuenta | fünfzig
    """,
    "country": """
        Spain | España | Spanien
        Germany | Alemania | Deutschland
        England | Inglaterra | England
        France | Francia | Frankreich
        Italy | Italia | Italien
        Mexico | México | Mexiko
        China | China | China
        Japan | Japón | Japan
        Canada | Canadá | Kanada
        Poland | Polonia | Polen
        Portugal | Portugal | Portugal
        Greece | Grecia | Griechenland
        Brazil | Brasil | Brasilien
        Russia | Rusia | Russland
    """,
    "weather": """
        cold | hace_frío hacía_frío | kalt
        sunny | hace_sol hacía_sol | sonnig
        hot | hace_calor hacía_calor | heiß
        cloudy | está_nublado estaba_nublado | bewölkt
        windy | hace_viento hacía_viento | windig
        foggy | hay_niebla había_niebla | neblig
        cool | hace_fresco hacía_fresco | kühl
        stormy | hay_tormenta había_tormenta | stürmisch
    """,
    "day": """
        Monday | lunes m | Montag m
        Friday | viernes m | Freitag m
        Sunday | domingo m | Sonntag m
        Saturday | sábado m | Samstag m
        Wednesday | miércoles m | Mittwoch m
        Tuesday | martes m | Dienstag m
        Thursday | jueves m | Donnerstag m
    """,
    "family": """
        mother mothers | madre madres f | Mutter Mütter f
        father fathers | padre padres m | Vater Väter m
        brother brothers | hermano hermanos m | Bruder Brüder m
        sister sisters | hermana hermanas f | Schwester Schwestern f
        son sons | hijo hijos m | Sohn Söhne m
        daughter daughters | hija hijas f | Tochter Töchter f
        husband husbands | marido maridos m | Mann Männer m
        wife wives | mujer mujeres f | Frau Frauen f
        grandmother grandmothers | abuela abuelas f | Großmutter Großmütter f
        grandfather grandfathers | abuelo abuelos m | Großvater Großväter m
        uncle uncles | tío tíos m | Onkel Onkel m
        aunt aunts | tía tías f | Tante Tanten f
    """,
    "job": """
        teacher | profesor profesora | Lehrer Lehrerin
        doctor | médico médica | Arzt Ärztin
        cook | cocinero cocinera | Koch Köchin
        nurse | enfermero enfermera | Krankenpfleger Krankenpflegerin
        singer | cantante | Sänger Sängerin
        painter | pintor pintora | Maler Malerin
        writer | escritor escritora | Schriftsteller Schriftstellerin
        actor | actor actriz | Schauspieler Schauspielerin
        lawyer | abogado abogada | Anwalt Anwältin
        engineer | ingeniero ingeniera | Ingenieur Ingenieurin
        baker | panadero panadera | Bäcker Bäckerin
    """,
    "place": """
        station stations | estación estaciones f | Bahnhof Bahnhöfe m
        school schools | escuela escuelas f | Schule Schulen f
        park parks | parque parques m | Park Parks m
        bank banks | banco bancos m | Bank Banken f
        market markets | mercado mercados m | Markt Märkte m
        beach beaches | playa playas f | Strand Strände m
        church churches | iglesia iglesias f | Kirche Kirchen f
        hotel hotels | hotel hoteles m | Hotel Hotels n
        bridge bridges | puente puentes m | Brücke Brücken f
        museum museums | museo museos m | Museum Museen n
        hospital hospitals | hospital hospitales m | Krankenhaus Krankenhäuser n
        airport airports | aeropuerto aeropuertos m | Flughafen Flughäfen m
        library libraries | biblioteca bibliotecas f | Bibliothek Bibliotheken f
    """,
    "room": """
        house houses | casa casas f | Haus Häuser n
        kitchen kitchens | cocina cocinas f | Küche Küchen f
        garden gardens | jardín jardines m | Garten Gärten m
        bathroom bathrooms | baño baños m | Badezimmer Badezimmer n
        car cars | coche coches m | Auto Autos n
        bedroom bedrooms | dormitorio dormitorios m | Schlafzimmer Schlafzimmer n
        garage garages | garaje garajes m | Garage Garagen f
    """,
    "body": """
        head heads | cabeza cabezas f | Kopf Köpfe m
        foot feet | pie pies m | Fuß Füße m
        back backs | espalda espaldas f | Rücken Rücken m
        hand hands | mano manos f | Hand Hände f
        leg legs | pierna piernas f | Bein Beine n
        arm arms | brazo brazos m | Arm Arme m
        knee knees | rodilla rodillas f | Knie Knie n
        eye eyes | ojo ojos m | Auge Augen n
        stomach stomachs | estómago estómagos m | Bauch Bäuche m
        ear ears | oído oídos m | Ohr Ohren n
        shoulder shoulders | hombro hombros m | Schulter Schultern f
        nose noses | nariz narices f | Nase Nasen f
        finger fingers | dedo dedos m | Finger Finger m
    """,
    "object": """
        book books | libro libros m | Buch Bücher n
        key keys | llave llaves f | Schlüssel Schlüssel m
        cup cups | taza tazas f | Tasse Tassen f
        bag bags | bolsa bolsas f | Tasche Taschen f
        phone phones | teléfono teléfonos m | Telefon Telefone n
        lamp lamps | lámpara lámparas f | Lampe Lampen f
        pen pens | bolígrafo bolígrafos m | Stift Stifte m
        glass glasses | vaso vasos m | Glas Gläser n
        plate plates | plato platos m | Teller Teller m
        clock clocks | reloj relojes m | Uhr Uhren f
        knife knives | cuchillo cuchillos m | Messer Messer n
        spoon spoons | cuchara cucharas f | Löffel Löffel m
        box boxes | caja cajas f | Kiste Kisten f
        umbrella umbrellas | paraguas paraguas m | Regenschirm Regenschirme m
    """,
    "furniture": """
        table tables | mesa mesas f | Tisch Tische m
        chair chairs | silla sillas f | Stuhl Stühle m
        bed beds | cama camas f | Bett Betten n
        sofa sofas | sofá sofás m | Sofa Sofas n
        door doors | puerta puertas f | Tür Türen f
        window windows | ventana ventanas f | Fenster Fenster n
    """,
    "greeting": """
        hello | hola | hallo
        good_morning | buenos_días | guten_Morgen
        good_evening | buenas_tardes | guten_Abend
        good_night | buenas_noches | gute_Nacht
        thank_you | gracias | danke
    """,
}


def _form(cell: str) -> Form:
    """One language's cell of a line."""
    parts = [part.replace("_", " ") for part in cell.split()]
    gender = next((part for part in parts[1:] if part in ("m", "f", "n", "a")), "")
    spelt = [part for part in parts if part != gender]
    base, other, oblique = [*spelt, *[""] * (3 - len(spelt))]
    return Form(base, other or base, gender, oblique)


def _words(group: str, table: str) -> tuple[Word, ...]:
    rows = [row.split("|") for row in table.strip().splitlines()]
    return tuple(Word(group, *(_form(cell) for cell in row)) for row in rows)


GROUPS = {group: _words(group, table) for group, table in _TABLES.items()}
