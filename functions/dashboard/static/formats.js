// How figures, money and times are written, in a language, a currency and the business time zone.

const ROUND_FROM_KRW = 100;

export function makeFormats({ language, currency, timeZone, krwPerUsd }) {
  const locale = language === "ko" ? "ko-KR" : "en-US";
  const number = (options) => new Intl.NumberFormat(locale, options);
  const date = (options) => new Intl.DateTimeFormat(locale, options);
  const integer = number({ maximumFractionDigits: 0 });
  const short = number({ notation: "compact", maximumFractionDigits: 1 });
  const won = number({ style: "currency", currency: "KRW", maximumFractionDigits: 0 });
  const fineWon = number({ style: "currency", currency: "KRW", minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const smallWon = number({ style: "currency", currency: "KRW", maximumFractionDigits: 2 });
  // On an axis a mark of 12,500 must not read 13 thousand.
  const exact = { notation: "compact", maximumFractionDigits: 3 };
  const axisCount = number(exact);
  const axisWon = number({ style: "currency", currency: "KRW", ...exact });
  const axisDollars = number({
    style: "currency",
    currency: "USD",
    currencyDisplay: "narrowSymbol",
    minimumFractionDigits: 0,
    ...exact,
  });
  const axisSeconds = number({ style: "unit", unit: "second", unitDisplay: "narrow", maximumFractionDigits: 3 });
  const shortWon = number({ style: "currency", currency: "KRW", notation: "compact", maximumFractionDigits: 1 });
  const money = { style: "currency", currency: "USD", currencyDisplay: "narrowSymbol" };
  const dollars = number(money);
  const smallDollars = number({ ...money, minimumFractionDigits: 2, maximumFractionDigits: 6 });
  const shortDollars = number({ ...money, notation: "compact", minimumFractionDigits: 0, maximumFractionDigits: 1 });
  const percent = number({ style: "percent", maximumFractionDigits: 1 });
  const wholePercent = number({ style: "percent", maximumFractionDigits: 0 });
  const unit = (name, digits) =>
    number({ style: "unit", unit: name, unitDisplay: "narrow", maximumFractionDigits: digits });
  const [milliseconds, seconds, wholeSeconds, minutes] = [
    unit("millisecond", 0),
    unit("second", 1),
    unit("second", 0),
    unit("minute", 1),
  ];
  // Days have no time zone: noon of Greenwich is the same day wherever it is only written down.
  const atNoon = (day) => new Date(`${day}T12:00:00Z`);
  const dayLong = date({ month: "long", day: "numeric", weekday: "short", timeZone: "UTC" });
  const monthLong = date({ year: "numeric", month: "long", timeZone: "UTC" });
  const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone };
  const time = date({ ...clock, second: "2-digit" });
  const hour = date(clock);
  const fullTime = date({ dateStyle: "long", timeStyle: "medium", timeZone, hourCycle: "h23" });
  const dayOf = new Intl.DateTimeFormat("en-CA", { timeZone, year: "numeric", month: "2-digit", day: "2-digit" });

  const inWon = (usd) => usd * krwPerUsd;
  const krw = (usd) => (inWon(usd) > 0 && inWon(usd) < ROUND_FROM_KRW ? smallWon : won).format(inWon(usd));
  const usd = (amount) => (amount > 0 && amount < 0.01 ? smallDollars : dollars).format(amount);
  const inKrw = currency === "krw";

  return {
    /** Both currencies, the chosen one first. */
    money: (amount) => (inKrw ? krw(amount) : usd(amount)),
    other: (amount) => (inKrw ? usd(amount) : krw(amount)),
    /** Of one request: what is below a cent must not look like nothing. */
    fine: (amount) => (inKrw ? fineWon.format(inWon(amount)) : smallDollars.format(amount)),
    fineOther: (amount) => (inKrw ? smallDollars.format(amount) : fineWon.format(inWon(amount))),
    shortMoney: (amount) => (inKrw ? shortWon.format(inWon(amount)) : shortDollars.format(amount)),
    /** The amount as a number of the chosen currency, so that an axis has round figures; and how an axis writes it. */
    shown: (amount) => (inKrw ? inWon(amount) : amount),
    shownAsMoney: (value) => (inKrw ? krw(value / krwPerUsd) : usd(value)),
    shownOnAxis: (value) => (inKrw ? axisWon : axisDollars).format(value),
    countOnAxis: (value) => axisCount.format(value),
    durationOnAxis: (ms) => axisSeconds.format(ms / 1000),
    count: (value) => integer.format(value),
    shortCount: (value) => short.format(value),
    percent: (share) => percent.format(share),
    wholePercent: (share) => wholePercent.format(share),
    duration: (ms) =>
      ms < 1000
        ? milliseconds.format(ms)
        : ms < 10_000
          ? seconds.format(ms / 1000)
          : ms < 120_000
            ? wholeSeconds.format(ms / 1000)
            : minutes.format(ms / 60_000),
    /** On an axis: 11/23, which Koreans write as well. */
    day: (day) => `${Number(day.slice(5, 7))}/${Number(day.slice(8))}`,
    longDay: (day) => dayLong.format(atNoon(day)),
    month: (month) => monthLong.format(atNoon(`${month}-15`)),
    time: (atS) => time.format(atS * 1000),
    dayAndTime(atS) {
      return `${this.day(this.dayOf(atS))} ${hour.format(atS * 1000)}`;
    },
    fullTime: (atS) => fullTime.format(atS * 1000),
    wonRate: won.format(krwPerUsd),
    /** The business day of a time: "2026-11-22". */
    dayOf: (atS) => dayOf.format(atS * 1000),
  };
}
