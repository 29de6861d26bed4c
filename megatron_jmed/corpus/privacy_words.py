"""Which words make a run of characters likely, or unlikely, to be a person's name?

Word lists for privacy_names.py: common Japanese surnames, clinical roles used as honorifics, and words that stand
before an honorific without being a name (お母さん, ヘルパーさん). Invariant: data only.
"""

# ruff: noqa: SIM905 - a list of words is easier to read and extend as text

SURNAMES = frozenset(
    """
佐藤 鈴木 高橋 髙橋 田中 渡辺 渡邊 渡邉 渡部 伊藤 山本 中村 小林 加藤 吉田 𠮷田 山田 佐々木 山口 松本 井上 木村 林 斎藤
斉藤 齋藤 齊藤 清水 山崎 山﨑 阿部 安部 安倍 森 池田 橋本 山下 石川 中島 中嶋 前田 藤田 小川 後藤 岡田 長谷川 村上 近藤
石井 坂本 遠藤 青木 藤井 西村 福田 太田 三浦 藤原 岡本 松田 中川 中野 原田 小野 田村 竹内 金子 和田 中山 石田 上田 森田
原 柴田 酒井 工藤 横山 宮崎 宮本 内田 高木 髙木 安藤 谷口 大野 丸山 今井 高田 髙田 藤本 武田 村田 上野 杉山 増田 平野
大塚 千葉 久保 小島 岩崎 桜井 櫻井 野口 松尾 野村 木下 菊地 菊池 佐野 大西 杉本 新井 浜田 濱田 市川 水野 島田 小松 古川
山内 西田 菅原 小山 吉川 五十嵐 川崎 北村 桑原 川口 飯田 安田 西川 久保田 東 渡会 平田 関 服部 川村 中田 本田 土屋 吉村
田口 樋口 樋渡 矢野 秋山 川上 広瀬 廣瀬 飯塚 馬場 小池 荒木 大橋 大久保 石原 岩田 松井 辻 松村 内藤 熊谷 星野 福島 永井
松岡 早川 西山 吉岡 大島 黒田 田辺 田邊 浅野 大石 高野 堀 永田 片山 萩原 荻原 福井 松原 望月 須藤 小田 篠原 栗原 尾崎
鎌田 西 岡 足立 児玉 伊東 片岡 成田 坂口 白石 荒井 町田 本間 栗田 関口 宮田 岡崎 石橋 松下 奥村 今村 小西 岩本 黒木 小沢
小澤 大川 横田 三宅 平井 沢田 澤田 福原 根本 矢島 大谷 上原 土井 田島 川島 榎本 大森 藤川 富田 冨田 高山 髙山 小泉 宮川
武藤 植田 柳 堀内 吉野 須田 千田 中井 中西 中尾 中沢 中澤 高島 髙島 杉浦 村松 河野 甲斐 安達 大場 大木 天野 石塚 岩井
古田 江口 江藤 小笠原 小野寺 北川 坂井 阪本 坂田 佐久間 酒井 佐伯 塩田 島崎 庄司 白井 神田 神谷 杉田 瀬戸 相馬 高井 髙井
高瀬 滝沢 瀧澤 竹田 竹中 立花 谷 津田 堤 寺田 徳永 戸田 豊田 長井 長尾 長島 永野 西尾 西岡 西野 西本 野崎 野田 萩 畑
浜口 原口 東野 日高 平山 平川 深沢 藤岡 藤沢 藤澤 藤野 二宮 古賀 星 細川 堀江 本多 前川 牧野 松永 松崎 松浦 松野 三上
三木 三好 水谷 溝口 宮下 宮内 宮沢 宮澤 向井 村井 村山 室井 森本 森川 森下 森山 八木 柳田 山岸 山川 山根 山村 山元 横井
吉本 吉原 若林 若松 鷲尾 青山 青柳 赤松 秋田 浅井 芦田 東海林 穴井 新谷 有馬 安東 飯島 石黒 石山 泉 板垣 市村 井口 井出
稲垣 稲葉 今野 入江 岩瀬 岩下 植木 上村 臼井 梅田 梅原 浦田 江川 大内 大沢 大澤 大竹 太田垣 大原 大山 岡村 岡部 岡野
荻野 奥田 奥山 落合 小倉 小原 香川 柏木 梶原 勝又 加納 鎌倉 亀井 川合 川田 川端 河合 河村 菅 菅野 神崎 岸 岸本 木内 北島
北野 吉良 久野 倉田 黒川 黒沢 黒澤 桑田 小出 小坂 小宮 小柳 西郷 榊原 笹川 佐々 佐竹 椎名 塩谷 志村 下田 末永 杉原 砂川
仲村 比嘉 金城 大城 宮城 新垣 玉城 島袋 平良 知念 国吉 上地 関根 染谷 高松 髙松 高見 高村 滝 竹下 武井 田代 田原 玉井
田畑 千野 塚本 土田 角田 手塚 徳田 富永 内山 永島 長田 長野 名取 西沢 西澤 丹羽 根岸 野上 野沢 橋口 長谷部 羽田 花田
林田 原島 春日 半田 樋渡 日野 広田 深田 福本 福山 古谷 保坂 星川 細田 堀田 本山 真鍋 町野 三田 三谷 宮原 武者 村岡 村瀬
室田 元木 百瀬 森岡 門脇 安井 柳沢 柳澤 山中 山名 結城 湯浅 横尾 横川 米田 米山 和久 綿貫
""".split()
)

JAPANESE_ROLES = tuple(
    """
主任看護師 看護師長 看護師 准看護師 看護婦 保健師 助産師 薬剤師 臨床検査技師 放射線技師 技師 理学療法士 作業療法士
言語聴覚士 管理栄養士 栄養士 臨床工学技士 社会福祉士 介護士 心理士 研修医 医師 医員 准教授 名誉教授 教授 講師 助教 院長
副院長 病院長 部長 医長 師長 ソーシャルワーカー
""".split()
)

JAPANESE_NOT_NAMES = frozenset(
    """
患者 皆 奥 母 父 兄 姉 弟 妹 娘 息子 嫁 婿 孫 祖父 祖母 叔父 叔母 伯父 伯母 爺 婆 坊 嬢 赤 猫 犬 馬 鬼 主治医 医者 先輩
後輩 担任 担当 本人 家族 同 両 某 摂 華 源 平 彼 諸 御両 王 神 仏 殿 仕 模 多 一 異 有 左 他 何 沢山 旦那 若旦那 女将 若
姫 隣 客 諸君 暴 主 各 内科 外科 小児科 名医 校医 専門 指導 学校 大学 病院 塾 校長 教頭 恩 両親 親御 親戚 子供 子 女 男
外国人 日本人 新人 素人 芸人 職人 病人 故人 友人 知人 大家 作家 画家 農家 不詳 不明 匿名 主任 名誉 准 副 放射線 管理 病
看護 母上 父上 兄上 姉上 非公開 記載 記入 住所 氏名 年齢 性別 生年月日 電話 変更 確認 公表 登録 入院 外来 前医 当院 他院
病棟 高齢 男性 女性 成人 小児 金比羅 金毘羅 或日 先日 毎日 今日 昨日 御前 追返
""".split()
)

# A run of kanji with one of these endings is a role, a trade or a relation.
NOT_NAME_ENDINGS = (
    *"屋者師員士医娘親父母兄姉弟妹嫁婿孫妻様達客役婦官",
    *"爺婆坊嬢民職係業局科校院会社性歳女痛熱症病",
    "先生", "所長", "子息", "母上", "父上", "兄上", "姉上", "学生", "患者", "息子", "主人", "夫人", "婦人", "亭主", "旦那", "社長",
    "部長", "課長", "教授", "家族", "女王", "王子", "博士", "奥", "皆", "氏名", "名前", "担当", "担任", "外科", "内科",
    "症例", "疾患", "既往", "病院", "大学", "国人", "巡査", "刑事", "女中", "和尚",
)  # fmt: skip

KATAKANA_NOT_NAMES = tuple(
    """
ヘルパー マネジャー マネージャー ケアマネ スタッフ ナース ドクター リーダー メンバー ユーザー ボランティア クライアント
メーカー フリーランス クリニック センター ワーカー トレーナー コーチ タレント アナウンサー ファン モデル オーナー
サラリーマン ドライバー パパ ママ オジ オバ インターン レジデント オペレーター カウンセラー アドバイザー サポーター
リハビリテーション リハ プロ アマ ゲスト ホスト キャスター ディレクター プロデューサー デザイナー ライター エンジニア
バイト パート アルバイト フォロワー クラブ グループ チーム インストラクター セラピスト スポーツ バス タクシー パン シェフ マスター
ベテラン
""".split()
)

ENGLISH_NOT_NAMES = frozenset(
    """
The This That These Those In If It Is Are Was Were He She His Her They We You Who What When Where Why How A An And Or
But Not No None Unknown Yes Male Female Mr Mr. Mrs Mrs. Ms Ms. Dr Dr. Prof Prof. Phone Tel Fax Email Address Date DOB
MRN SSN Age Sex Gender Hospital University Department Medical Center Centre Clinic College School Institute Foundation
Street Road Avenue Association Society Patient Patients Name Education Information Care Safety History Data Chart Record
Records Reviewed Signed Dictated Referred By Please Attending Physician Nurse Doctor Surgeon On At As For From With To
Of Committee Board Service Services Health Library National Press Award Prize Lecture Day Memorial Syndrome Disease Test
Scale Score Method MD RN PhD Bethesda Silver Spring Baltimore Rockville Associate Assistant Professor Senior Director
Chief Registered Certified Journal Research Program Report Group Team Consent Then There
""".split()
) - {"No"}
