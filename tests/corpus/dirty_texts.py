"""What should cleaning take out, and what must it leave alone?

Texts invented for this purpose, labelled: `dirty_texts` by the fault that each has, `good_texts` are short clinical texts
of the kinds that rules made for web pages tend to lose (notes in telegram style, values, lists of drugs, English terms).
Invariant: the same texts every time.
"""

# ruff: noqa: SIM905 - a list of words is easier to read as text

import random
from typing import NamedTuple


class Labelled(NamedTuple):
    """A text with what is wrong with it; "good" where nothing is."""

    label: str
    lang: str
    text: str


GOOD_JA = """
七十二歳女性。転倒後の右股関節痛。単純X線で大腿骨頸部骨折あり。明日手術の予定。
主訴：動悸。現病歴：昨夜から脈が速い。心電図は心房細動、心拍数128。既往に甲状腺機能亢進症。
術後一日目。体温37.8℃、血圧118/64、SpO2 96%（室内気）。創部に発赤なし。離床を開始した。
Na 138、K 4.2、Cl 101、BUN 18.5、Cre 0.92。肝機能は正常範囲。CRP 0.3と改善。
処方：アムロジピン5mg 1錠 朝食後、ロスバスタチン2.5mg 1錠 夕食後、28日分。
S）眠れるようになった。O）表情は穏やか。A）抑うつは軽快傾向。P）同量で継続、二週間後に再診。
胸部CT：右S8に12mmのすりガラス結節。前回と著変なし。半年後の再検を勧める。
アレルギー：ペニシリン（発疹）、そば。喫煙：なし。飲酒：機会飲酒。
上部消化管内視鏡で胃角部に潰瘍（A1）。生検は良性。ピロリ菌陽性のため除菌を始めた。
リハビリは順調で、杖歩行が三十メートル可能になった。退院後の住まいについて家族と相談する。
神経学的所見：意識清明、右片麻痺（MMT 3/5）、構音障害あり。NIHSS 7点。
妊娠三十四週二日。子宮底長30cm、胎児心拍良好。浮腫（±）、尿蛋白（－）。
HbA1c 8.1%→7.4%。間食を減らした。低血糖なし。メトホルミンを増量する。
乳児健診。体重7,850g。首のすわり、寝返りは良好。予防接種は予定どおり。
診断：#1 慢性心不全 #2 慢性腎臓病G3b #3 貧血。利尿薬を減量、鉄剤を追加。
家族への説明：予後は月単位と考えられる。痛みの緩和を優先する方針で同意を得た。
左膝関節穿刺で黄色透明の関節液20mL。結晶を認め、偽痛風と診断した。
皮疹は体幹から四肢へ広がり、癒合傾向がある。粘膜疹はない。被疑薬を中止した。
救急搬送。JCS 200、瞳孔3mm/3mm、対光反射緩慢。頭部CTで左被殻出血を認めた。
CPAP導入後、日中の眠気は消えた。AHIは42から4に下がった。
腰椎MRI：L4/5に椎間板の膨隆、脊柱管は狭い。保存療法で経過をみる。
看護記録：夜間二回、便所に起きた。ふらつきなし。ナースコールの使い方を再度説明した。
眼底：右に点状出血、左に軟性白斑。単純網膜症から前増殖期へ進行。
体重が一週間で三キロ増えた。下腿浮腫が強い。塩分の多い食事が続いたとのこと。
抗菌薬を変更して三日目に解熱した。血液培養は二組とも陰性だった。
患者は一人暮らしで、訪問看護を週二回利用している。服薬はカレンダーで管理。
PSA 6.8。直腸診では硬結を触れない。前立腺MRIを予約した。
幼児の熱性けいれん。持続は三分。発作後の意識は速やかに戻った。
透析中に血圧が下がり、除水速度を落とした。ドライウェイトを0.5kg上げる。
咽頭痛と発熱。扁桃に白苔、圧痛のある頸部リンパ節。迅速検査は陽性であった。
外傷：左示指の切創2cm。腱と神経に損傷なし。洗浄し、三針縫合した。
認知機能検査は二十一点。日付と場所の見当識が低下している。運転は控えるよう伝えた。
""".strip().splitlines()
GOOD_EN = """
72F, fall at home, right hip pain. X-ray: displaced femoral neck fracture. For theatre tomorrow.
Chief complaint: palpitations since last night. ECG shows atrial fibrillation, rate 128.
Post-op day 1. T 37.8, BP 118/64, SpO2 96% on room air. Wound clean and dry. Walking with a frame.
Na 138, K 4.2, Cl 101, urea 6.1, creatinine 92. Liver tests within normal limits. CRP falling.
Plan: continue amlodipine 5 mg daily, start rosuvastatin 5 mg at night, review in four weeks.
S: sleeping better. O: calm, good eye contact. A: depression improving. P: same dose, see in two weeks.
CT chest: 12 mm ground-glass nodule in the right lower lobe, unchanged. Repeat in six months.
Allergies: penicillin (rash). Non-smoker. Drinks two units of alcohol a week.
Endoscopy: clean-based gastric ulcer at the angulus. Biopsies benign. Eradication therapy given.
Rehab going well; walks thirty metres with a stick. Family meeting about discharge on Friday.
Neuro: alert, right hemiparesis 3/5, dysarthria. NIHSS 7. Thrombolysis started at 40 minutes.
34 weeks and 2 days. Fundal height 33 cm, fetal heart 140 regular. No protein in the urine.
HbA1c down from 8.1 to 7.4. No hypos. Metformin increased to 1 g twice daily.
Well-baby check: weight 7.85 kg, rolls over, good head control. Vaccines up to date.
Diagnoses: 1. Heart failure. 2. CKD stage 3b. 3. Iron deficiency anaemia.
Spoke with the daughter: prognosis is weeks to months, comfort is the priority, she agrees.
Left knee aspirate: 20 mL clear yellow fluid, crystals seen, treated as pseudogout.
Rash spread from trunk to limbs over two days, no mucosal lesions. Suspected drug stopped.
Brought in by ambulance, GCS 6, pupils equal and sluggish. CT head: left putaminal bleed.
On CPAP the daytime sleepiness has gone and the AHI fell from 42 to 4.
MRI lumbar spine: L4/5 disc bulge with canal narrowing. Conservative management for now.
Nursing: up twice to the toilet overnight, steady on feet, call bell within reach.
Fundi: dot haemorrhages on the right, cotton wool spots on the left. Refer to the eye clinic.
Weight up 3 kg in a week with leg swelling after a salty diet. Furosemide doubled.
Afebrile on day three of the new antibiotic. Two sets of blood cultures negative.
Lives alone, district nurse twice a week, tablets in a dosette box.
PSA 6.8, smooth gland. Prostate MRI requested. Patient aware of the reasons.
Febrile seizure of three minutes, quick recovery, no focal signs. Parents reassured.
Blood pressure dropped during dialysis; ultrafiltration slowed and dry weight raised by 0.5 kg.
Sore throat and fever, exudate on both tonsils, tender neck nodes. Rapid test positive.
2 cm laceration of the left index finger. Tendons and nerves intact. Irrigated, three sutures.
MMSE 21. Disoriented to date and place. Advised not to drive until reviewed.
""".strip().splitlines()

# Long lists without a sentence: what a rule against keywords is most likely to lose.
LISTS = (
    Labelled("good list", "ja", "\n".join(
        f"{number}. {drug} {dose}mg 1日{times}回 {when} 28日分" for number, (drug, dose, times, when) in enumerate((
            ("アムロジピン", 5, 1, "朝食後"), ("テルミサルタン", 40, 1, "朝食後"), ("ロスバスタチン", 2.5, 1, "夕食後"),
            ("メトホルミン", 500, 2, "朝夕食後"), ("シタグリプチン", 50, 1, "朝食後"), ("ランソプラゾール", 15, 1, "朝食後"),
            ("酸化マグネシウム", 330, 3, "毎食後"), ("フロセミド", 20, 1, "朝食後"), ("スピロノラクトン", 25, 1, "朝食後"),
            ("ビソプロロール", 2.5, 1, "朝食後"), ("アスピリン", 100, 1, "朝食後"), ("フェブキソスタット", 10, 1, "朝食後"),
        ), 1))),
    Labelled("good list", "ja", "既往歴、併存症\n" + "、".join(
        "本態性高血圧症 慢性心不全 心房細動 陳旧性心筋梗塞 二型糖尿病 糖尿病性腎症 慢性腎臓病 脂質異常症 高尿酸血症 痛風性関節炎 "
        "慢性閉塞性肺疾患 気管支喘息 睡眠時無呼吸症候群 胃食道逆流症 胃潰瘍 胆石症 脂肪肝 変形性膝関節症 腰部脊柱管狭窄症 骨粗鬆症 "
        "白内障 緑内障 加齢性難聴 前立腺肥大症 過活動膀胱 帯状疱疹 皮脂欠乏性湿疹 鉄欠乏性貧血 甲状腺機能低下症".split())),
    Labelled("good list", "en", "Past history\n" + ", ".join(
        "essential hypertension,heart failure,atrial fibrillation,old myocardial infarction,type two diabetes,diabetic nephropathy,"
        "chronic kidney disease,high cholesterol,gout,emphysema,asthma,sleep apnoea,reflux,gastric ulcer,gallstones,fatty liver,"
        "knee arthritis,spinal stenosis,osteoporosis,cataracts,glaucoma,hearing loss,prostate enlargement,shingles,eczema,iron "
        "deficiency anaemia,underactive thyroid,migraine,depression,hay fever".split(","))),
)  # fmt: skip

MENU_JA = ["ホーム", "診療科一覧", "外来のご案内", "入院のご案内", "交通アクセス", "採用情報", "お知らせ", "質問集", "リンク集"]
MENU_EN = ["Home", "Our Services", "Find a Doctor", "Locations", "Careers", "News", "Patient Portal", "Billing", "Contact"]
TERMS_JA = ["頭痛", "腰痛", "肩こり", "めまい", "不眠", "便秘", "花粉症", "高血圧", "糖尿病", "脂質異常症", "痛風", "貧血"]
TERMS_EN = ["headache", "backache", "insomnia", "asthma", "eczema", "diabetes", "arthritis", "anaemia", "migraine", "gout"]
SPAM_JA = ["激安", "送料無料", "今すぐ購入", "口コミ", "ランキング", "最安値", "通販", "サプリ", "即日発送", "ポイント十倍"]
SPAM_EN = ["cheap", "pills", "online", "buy", "discount", "pharmacy", "generic", "order", "overnight", "delivery"]


def good_texts() -> list[Labelled]:
    short = [Labelled("good", lang, text) for lang, texts in (("ja", GOOD_JA), ("en", GOOD_EN)) for text in texts]
    return [*short, *LISTS]


def dirty_texts() -> list[Labelled]:
    chance = random.Random(17)
    found = []
    for number in range(4):
        ja, en = GOOD_JA[number * 3], GOOD_EN[number * 3]
        for lang, good, menu, terms, spam in (("ja", ja, MENU_JA, TERMS_JA, SPAM_JA), ("en", en, MENU_EN, TERMS_EN, SPAM_EN)):
            many = [chance.choice(terms) for _ in range(70 + 40 * number)]
            machine = [chance.choice(spam) for _ in range(60 + 60 * number)]
            numbers = [f"{chance.randrange(100, 999)} {chance.random():.2f} {chance.randrange(9)}" for _ in range(12)]
            code = [f"var x{i} = [{chance.randrange(99)}, {i}]; if (x{i}[0] > {i}) {{ f(x{i}); }}" for i in range(8)]
            heads = [one[: 14 + number] + "..." for one in chance.sample(GOOD_JA if lang == "ja" else GOOD_EN, 6)]
            wrong = ("shift_jis", "utf-8", "cp1252")[number % 2 if lang == "ja" else 2]
            found += [
                Labelled("navigation", lang, "\n".join(chance.sample(menu, 9) * (1 + number))),
                Labelled("mojibake", lang, _mojibake(good, wrong)),
                Labelled("repeated lines", lang, "\n".join([good, *[chance.choice(menu[:2]) + " > " + menu[4]] * (12 + number)])),
                Labelled("code", lang, "\n".join(code)),
                Labelled("keywords", lang, (", " if lang == "en" else "、").join(many)),
                Labelled("table", lang, "\n".join(numbers)),
                Labelled("machine spam", lang, (" " if lang == "en" else "").join(machine)),
                Labelled("teasers", lang, "\n".join(heads)),
            ]
    return found


def _mojibake(text: str, wrong: str) -> str:
    if wrong == "cp1252":  # accents and quotation marks of a text in UTF-8, read as Western European
        text = text.replace(" ", " é “", 3).replace(",", "’s,")
        return text.encode().decode("cp1252", "replace")
    if wrong == "shift_jis":
        return text.encode().decode("shift_jis", "replace")
    return text.encode("shift_jis", "replace").decode("utf-8", "replace")
