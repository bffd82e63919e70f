// Locales. QuickJS has none, and there is no room in a session's memory for their data: what cannot be right says so.
//
// `toLocaleString` and its kin write English as it is written in the United States, in UTC, when nothing else is asked for, which
// is what Node does in a container. Everything else throws, as does all of `Intl` but what libraries ask to find out the time zone.

const refuse = (what: string): never => {
  throw new RangeError(
    `${what} is not in machines, which have no data of locales: keep the value, and format it where it is shown`,
  );
};

const DEFAULTS = ["en-US", "en"];

/** Whether the arguments of a `toLocale...` ask for nothing but the default. */
function check(what: string, locales: unknown, options: unknown): void {
  const [locale] = Array.isArray(locales) ? (locales as unknown[]) : [locales];
  if ((locale !== undefined && !DEFAULTS.includes(locale as string)) || options !== undefined)
    refuse(`${what} for a locale, or with options,`);
}

const grouped = (digits: string): string => digits.replace(/\B(?=(?:\d{3})+$)/g, ",");

/** A finite number's decimal digits, and how many of them stand before the point. */
function digitsOf(value: number): [digits: string, point: number] {
  const [mantissa = "", exponent = "0"] = Math.abs(value).toString().split("e");
  const [whole = "", fraction = ""] = mantissa.split(".");
  return [whole + fraction, whole.length + Number(exponent)];
}

/** With at most three digits behind the point, rounded half away from zero as they are written, as ECMA-402 has it. */
export function numberText(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  if (!Number.isFinite(value)) return `${sign}∞`;
  const [digits, point] = digitsOf(value);
  const padded = digits.padEnd(point + 3, "0");
  const end = point + 3;
  const kept = end < 0 ? "0" : padded.slice(0, end) || "0";
  const up = end >= 0 && (padded[end] ?? "0") >= "5" ? 1n : 0n;
  const thousandths = (BigInt(kept) + up).toString().padStart(4, "0");
  const fraction = thousandths.slice(-3).replace(/0+$/, "");
  return `${sign}${grouped(thousandths.slice(0, -3))}${fraction && `.${fraction}`}`;
}

const two = (value: number): string => String(value).padStart(2, "0");

function dateText(date: Date): string {
  return `${date.getUTCMonth() + 1}/${date.getUTCDate()}/${date.getUTCFullYear()}`;
}

function timeText(date: Date): string {
  const hours = date.getUTCHours();
  const clock = `${hours % 12 || 12}:${two(date.getUTCMinutes())}:${two(date.getUTCSeconds())}`;
  return `${clock} ${hours < 12 ? "AM" : "PM"}`;
}

function installTexts(): void {
  const isInvalid = (date: Date): boolean => Number.isNaN(date.getTime());
  const ofDate = (name: string, write: (date: Date) => string) =>
    ({
      [name](this: Date, locales?: unknown, options?: unknown): string {
        check(`Date's ${name}`, locales, options);
        return isInvalid(this) ? "Invalid Date" : write(this);
      },
    })[name];
  /* eslint-disable @typescript-eslint/unbound-method -- called with a value of the caller's */
  const itsCompare = String.prototype.localeCompare;
  const bigintText = BigInt.prototype.toString;
  const upper = String.prototype.toUpperCase;
  const lower = String.prototype.toLowerCase;
  /* eslint-enable @typescript-eslint/unbound-method */
  const methods: [object, string, unknown][] = [
    [
      Number.prototype,
      "toLocaleString",
      function toLocaleString(this: unknown, locales?: unknown, options?: unknown): string {
        check("Number's toLocaleString", locales, options);
        return numberText(Number(this)); // which may be an object, too
      },
    ],
    [
      BigInt.prototype,
      "toLocaleString",
      function toLocaleString(this: unknown, locales?: unknown, options?: unknown): string {
        check("BigInt's toLocaleString", locales, options);
        const text = Reflect.apply(bigintText, this as bigint, []);
        return text.startsWith("-") ? `-${grouped(text.slice(1))}` : grouped(text);
      },
    ],
    [
      String.prototype,
      "localeCompare",
      function localeCompare(
        this: string,
        other: string,
        locales?: unknown,
        options?: unknown,
      ): number {
        if (locales !== undefined || options !== undefined)
          refuse("localeCompare for a locale, or with options,");
        return Reflect.apply(itsCompare, this, [other]);
      },
    ],
    ...(["toLocaleUpperCase", "toLocaleLowerCase"] as const).map(
      (name): [object, string, unknown] => {
        const plain = name === "toLocaleUpperCase" ? upper : lower;
        return [
          String.prototype,
          name,
          {
            [name](this: string, locales?: unknown): string {
              check(`String's ${name}`, locales, undefined);
              return Reflect.apply(plain, this, []);
            },
          }[name],
        ];
      },
    ),
    [Date.prototype, "toLocaleDateString", ofDate("toLocaleDateString", dateText)],
    [Date.prototype, "toLocaleTimeString", ofDate("toLocaleTimeString", timeText)],
    [
      Date.prototype,
      "toLocaleString",
      ofDate("toLocaleString", (date) => `${dateText(date)}, ${timeText(date)}`),
    ],
  ];
  for (const [prototype, name, value] of methods)
    Object.defineProperty(prototype, name, { value, writable: true, configurable: true });
}

const UTC = ["UTC", "ETC/UTC", "GMT", "ETC/GMT"];

/** Says that it is UTC here, and formats nothing. */
class DateTimeFormat {
  constructor(_locales?: unknown, options?: { readonly timeZone?: string }) {
    const zone = options?.timeZone;
    if (zone !== undefined && !UTC.includes(zone.toUpperCase()))
      throw new RangeError(`Invalid time zone specified: ${zone} (machines know UTC alone)`);
  }

  static supportedLocalesOf(): string[] {
    return [];
  }

  resolvedOptions(): object {
    return { locale: "en-US", calendar: "gregory", numberingSystem: "latn", timeZone: "UTC" };
  }

  get format(): never {
    return refuse("Intl.DateTimeFormat's format");
  }

  formatToParts(): never {
    return refuse("Intl.DateTimeFormat's formatToParts");
  }

  formatRange(): never {
    return refuse("Intl.DateTimeFormat's formatRange");
  }
}

const ABSENT = [
  "Collator",
  "DisplayNames",
  "DurationFormat",
  "ListFormat",
  "Locale",
  "NumberFormat",
  "PluralRules",
  "RelativeTimeFormat",
  "Segmenter",
];

export function installLocale(): void {
  installTexts();
  // Which may be called without `new`.
  const callable = function (...given: ConstructorParameters<typeof DateTimeFormat>) {
    return new DateTimeFormat(...given);
  };
  callable.prototype = DateTimeFormat.prototype;
  callable.supportedLocalesOf = () => [];
  const Intl: Record<string, unknown> = { DateTimeFormat: callable };
  for (const name of ABSENT)
    // eslint-disable-next-line @typescript-eslint/no-extraneous-class -- what libraries look for is a class
    Intl[name] = class {
      constructor() {
        refuse(`Intl.${name}`);
      }

      static supportedLocalesOf(): string[] {
        return [];
      }
    };
  for (const name of ["getCanonicalLocales", "supportedValuesOf"])
    Intl[name] = () => refuse(`Intl.${name}`);
  Object.defineProperty(Intl, Symbol.toStringTag, { value: "Intl", configurable: true });
  Object.defineProperty(globalThis, "Intl", { value: Intl, writable: true, configurable: true });
}
