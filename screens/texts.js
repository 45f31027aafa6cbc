/**
 * Every text of the screens, in the languages that they speak, and times in the viewer's zone.
 *
 * In HTML, `data-text` names an element's text, `data-label` its aria-label and `data-hint` its placeholder. `{name}`
 * is filled in; of two texts with a bar between them, plural() takes the first for one and the second for the others.
 */

const en = {
  home: "Start page",
  kitchen: "Kitchen",
  pos: "Point of sale",
  dashboard: "Dashboard",
  ready: "Pick-up board",
  account: "Accounts",
  api: "API reference",
  loading: "One moment …",
  close: "Close",
  save: "Save",
  no: "No",
  add: "Add",
  undo: "Undo",
  table: "Table",
  station: "Station",
  note: "Note",
  rush: "Rush",
  reason: "Reason",
  status: "Status",

  state_LIVE: "Live",
  state_RECONNECTING: "Reconnecting",
  state_STALE: "No connection",
  stale_since: "No word from the server since {time}. What you see may be out of date.",
  session_lost: "You are not logged in.",
  log_in: "Log in",
  protected_elsewhere: "No account has been created yet, so Bistro92 serves only the machine that it runs on.",

  status_scheduled: "Scheduled",
  status_received: "Received",
  status_preparing: "Preparing",
  status_pending: "To do",
  status_voided: "Void",
  status_ready: "Ready",
  status_completed: "Completed",
  status_cancelled: "Cancelled",
  status_waiting: "Not sent yet",
  status_refused: "Refused",

  all_stations: "All stations",
  open_orders: "{count} order|{count} orders",
  unsent_changes: "{count} change not sent yet|{count} changes not sent yet",
  all_day: "All day",
  all_day_title: "Still to cook",
  recall: "Recall",
  recall_open: "Recall …",
  recall_title: "Recall an order",
  nothing_to_recall: "Nothing to recall.",
  text_size: "Text {size} %",
  sound: "Sound",
  sound_on: "Sound on",
  sound_off: "Sound off",
  sound_tap: "Tap for sound",
  nothing_to_cook: "Nothing to cook.",
  at_the_pass: "Ready to serve",
  hand_out: "Order {id}, {table}: handed out",
  bump: "Done",
  bumped: "Order {id} is done.",
  recalled: "Order {id} is back.",
  handed_out: "Order {id} was handed out.",
  refused: "Order {id}: this was not accepted. {why}",
  not_stored: "This device could not store that. It has not been sent.",
  changed_meanwhile: "It has been changed meanwhile – have a look.",
  voided: "Void",
  added: "New",
  seen: "Seen",
  change_line: "Added",
  change_void: "Voided",
  change_note: "Note changed",
  change_table: "Table changed",
  change_rush: "Now rush",
  change_cancelled: "Cancelled",

  pick_items: "Pick items",
  item_hint: "Find, or type anything: 2 Burger",
  new_order: "New order",
  choose_table: "Choose a table",
  other_table: "Table or name",
  clear: "Clear",
  order_note: "Note for the kitchen",
  order_note_hint: "e.g. allergies, one bill",
  note_hint: "e.g. no onions",
  add_note: "Note, station …",
  later: "For later",
  one_more: "One more {name}",
  one_less: "One less {name}",
  send: "Send {count} item|Send {count} items",
  send_nothing: "Send",
  no_lines: "Tap what the guests want first.",
  no_table: "Choose a table first.",
  order_refused: "{table}: this order was not accepted. {why}",
  not_kept: "This device could not store the order. It has not been sent.",
  adding_to: "Add to #{id}, {table}",
  my_orders: "Orders ({count})|Orders ({count})",
  no_till: "This device may look at orders, not take or change them.",
  all_tills: "Orders of all tills",
  no_orders: "Orders that you send stand here.",
  all_sent: "Everything is sent",
  waiting: "{count} not sent yet|{count} not sent yet",
  refused_count: "{count} refused|{count} refused",
  being_sent: "A change is being sent …",
  discard: "Discard",
  edit_again: "Edit",
  amend: "Change",
  amend_title: "Change order {id}",
  add_items: "Add items",
  void: "Void",
  void_line: "Void {name}",
  void_question: "Void {what}?",
  cancel_order: "Cancel order",
  cancel_question: "Cancel order {id}, {table}?",

  in_preparation: "In preparation",
  ready_now: "Please collect",
  board_empty: "No orders at the moment.",

  open_now: "In the kitchen",
  oldest_open: "Longest wait",
  last_hour: "Orders in the last hour",
  prep_p50: "Preparation, typical",
  prep_p90: "Preparation, 9 of 10 within",
  subscribers: "Connected screens",
  scheduled_now: "Scheduled",
  per_hour: "Orders an hour",
  per_hour_label: "Orders in each of the last 24 hours; most: {most}",
  prep_chart: "Preparation time in minutes",
  prep_chart_label: "Preparation time in each of the last 24 hours, median and 90th percentile; longest: {most} min",
  median: "Median",
  percentile90: "90th percentile",
  no_data: "Nothing in the last 24 hours.",
  history: "Orders",
  search: "Table or order number",
  any_status: "All",
  number: "Number",
  items: "Items",
  time: "Time",
  older: "Load older orders",
  nothing_found: "No order matches.",
  what_happened: "What happened",
  by: "by {who}",
  event_new_order: "Into the kitchen",
  event_order_scheduled: "Scheduled",
  event_order_updated: "Changed",

  welcome: "Restaurant orders, in real time",
  choose_screen: "Open a screen",
  kitchen_about: "What is to be cooked, most urgent first",
  pos_about: "Take orders at the till or the table",
  ready_about: "Numbers for guests: in preparation, ready",
  dashboard_about: "Counts, times and every order",
  account_about: "People and tablets",
  api_about: "For developers",
  server_ok: "The server is running and can store orders.",
  server_down: "The server cannot be reached or cannot store orders.",
  orders_open: "{count} open order|{count} open orders",
  connected: "{count} connected screen|{count} connected screens",
  you_are: "{name} · {role}",
  log_out: "Log out",
  username: "User name",
  password: "Password",
  password_hint: "At least 8 characters",
  first_account: "Create the first account",
  first_account_about:
    "There is no account yet, so everything works without a password – but only on this machine. Create one to open Bistro92 to the tablets in your network.",
  create_account: "Create account",
  pair_question: "Use this device as “{name}”?",
  pair_about: "It will be logged in with the role “{role}”.",
  pair_failed: "This link is not good any more. Make a new one under Accounts.",
  pair: "Use this device",

  people: "People",
  people_about: "Each person logs in with a name and a password.",
  since: "since {time}",
  own_mark: "(you)",
  change_password: "Change password",
  old_password: "Present password",
  new_password: "New password",
  password_of: "Password of {name}",
  password_changed: "The password of “{name}” was changed. Other sessions have ended.",
  wrong_password: "The present password is wrong.",
  role: "Role",
  role_manager: "Manager – everything",
  role_pos: "Till – takes and changes orders",
  role_kitchen: "Kitchen – cooks",
  role_viewer: "Viewer – looks",
  account_created: "The account “{name}” was created.",
  devices: "Devices",
  devices_about: "A tablet is paired once, with a link, and needs no password after that.",
  device_name: "Name of the device",
  expires: "Access for",
  expires_30: "30 days",
  expires_365: "One year",
  expires_never: "Until removed",
  add_device: "Add device",
  no_devices: "No device is paired.",
  remove: "Remove",
  remove_name: "Remove {name}",
  remove_question: "Remove “{name}”? It is logged out at once.",
  until: "until {time}",
  link_title: "Pair “{name}”",
  link_about: "Scan this with the tablet, or open the link on it. It is shown only now; whoever has it has access.",
  link_local: "This page was opened by an address that works only on this machine. Open it by the machine’s name in your network first.",
  copy: "Copy link",
  copied: "Copied.",
  manager_only: "Only a manager can change accounts.",
  first_needed: "Create the first account on the start page.",
  failed: "That did not work. {why}",
  no_answer: "The server does not answer.",
};

/** @type {typeof en} */
const de = {
  home: "Startseite",
  kitchen: "Küche",
  pos: "Kasse",
  dashboard: "Übersicht",
  ready: "Abholung",
  account: "Konten",
  api: "API-Referenz",
  loading: "Einen Moment …",
  close: "Schließen",
  save: "Speichern",
  no: "Nein",
  add: "Dazu",
  undo: "Rückgängig",
  table: "Tisch",
  station: "Station",
  note: "Hinweis",
  rush: "Eilig",
  reason: "Grund",
  status: "Stand",

  state_LIVE: "Live",
  state_RECONNECTING: "Verbinde …",
  state_STALE: "Keine Verbindung",
  stale_since: "Seit {time} nichts vom Server gehört. Die Anzeige ist vielleicht veraltet.",
  session_lost: "Sie sind nicht angemeldet.",
  log_in: "Anmelden",
  protected_elsewhere: "Es gibt noch kein Konto, darum bedient Bistro92 nur den Rechner, auf dem es läuft.",

  status_scheduled: "Geplant",
  status_received: "Eingegangen",
  status_preparing: "In Arbeit",
  status_pending: "Offen",
  status_voided: "Storno",
  status_ready: "Fertig",
  status_completed: "Erledigt",
  status_cancelled: "Storniert",
  status_waiting: "Noch nicht gesendet",
  status_refused: "Abgelehnt",

  all_stations: "Alle Stationen",
  open_orders: "{count} Bestellung|{count} Bestellungen",
  unsent_changes: "{count} Änderung noch nicht gesendet|{count} Änderungen noch nicht gesendet",
  all_day: "Gesamt",
  all_day_title: "Noch zu kochen",
  recall: "Zurückholen",
  recall_open: "Zurückholen …",
  recall_title: "Bestellung zurückholen",
  nothing_to_recall: "Nichts zum Zurückholen.",
  text_size: "Schrift {size} %",
  sound: "Ton",
  sound_on: "Ton an",
  sound_off: "Ton aus",
  sound_tap: "Für Ton tippen",
  nothing_to_cook: "Nichts zu kochen.",
  at_the_pass: "Am Pass",
  hand_out: "Bestellung {id}, {table}: ausgegeben",
  bump: "Fertig",
  bumped: "Bestellung {id} ist fertig.",
  recalled: "Bestellung {id} ist zurück.",
  handed_out: "Bestellung {id} ist ausgegeben.",
  refused: "Bestellung {id}: nicht angenommen. {why}",
  not_stored: "Dieses Gerät konnte das nicht speichern. Es wurde nicht gesendet.",
  changed_meanwhile: "Sie wurde inzwischen geändert – bitte ansehen.",
  voided: "Storno",
  added: "Neu",
  seen: "Gesehen",
  change_line: "Dazu",
  change_void: "Storno",
  change_note: "Hinweis geändert",
  change_table: "Tisch geändert",
  change_rush: "Jetzt eilig",
  change_cancelled: "Storniert",

  pick_items: "Artikel wählen",
  item_hint: "Suchen oder eingeben: 2 Burger",
  new_order: "Neue Bestellung",
  choose_table: "Tisch wählen",
  other_table: "Tisch oder Name",
  clear: "Leeren",
  order_note: "Hinweis an die Küche",
  order_note_hint: "z. B. Allergien, eine Rechnung",
  note_hint: "z. B. ohne Zwiebeln",
  add_note: "Hinweis, Station …",
  later: "Für später",
  one_more: "Eins mehr: {name}",
  one_less: "Eins weniger: {name}",
  send: "{count} Artikel senden|{count} Artikel senden",
  send_nothing: "Senden",
  no_lines: "Bitte erst tippen, was die Gäste möchten.",
  no_table: "Bitte erst einen Tisch wählen.",
  order_refused: "{table}: Diese Bestellung wurde nicht angenommen. {why}",
  not_kept: "Dieses Gerät konnte die Bestellung nicht speichern. Sie wurde nicht gesendet.",
  adding_to: "Dazu zu #{id}, {table}",
  my_orders: "Bestellungen ({count})|Bestellungen ({count})",
  no_till: "Dieses Gerät darf Bestellungen ansehen, aber nicht aufnehmen oder ändern.",
  all_tills: "Bestellungen aller Kassen",
  no_orders: "Hier stehen gesendete Bestellungen.",
  all_sent: "Alles gesendet",
  waiting: "{count} noch nicht gesendet|{count} noch nicht gesendet",
  refused_count: "{count} abgelehnt|{count} abgelehnt",
  being_sent: "Eine Änderung wird gesendet …",
  discard: "Verwerfen",
  edit_again: "Bearbeiten",
  amend: "Ändern",
  amend_title: "Bestellung {id} ändern",
  add_items: "Dazu",
  void: "Storno",
  void_line: "{name} stornieren",
  void_question: "{what} stornieren?",
  cancel_order: "Stornieren",
  cancel_question: "Bestellung {id}, {table}, stornieren?",

  in_preparation: "In Arbeit",
  ready_now: "Bitte abholen",
  board_empty: "Zurzeit keine Bestellungen.",

  open_now: "In der Küche",
  oldest_open: "Längste Wartezeit",
  last_hour: "Bestellungen letzte Stunde",
  prep_p50: "Zubereitung, typisch",
  prep_p90: "Zubereitung, 9 von 10 in",
  subscribers: "Verbundene Anzeigen",
  scheduled_now: "Geplant",
  per_hour: "Bestellungen je Stunde",
  per_hour_label: "Bestellungen in jeder der letzten 24 Stunden; höchstens: {most}",
  prep_chart: "Zubereitung in Minuten",
  prep_chart_label: "Zubereitungszeit in jeder der letzten 24 Stunden, Median und 90. Perzentil; längste: {most} min",
  median: "Median",
  percentile90: "90. Perzentil",
  no_data: "Nichts in den letzten 24 Stunden.",
  history: "Bestellungen",
  search: "Tisch oder Nummer",
  any_status: "Alle",
  number: "Nummer",
  items: "Artikel",
  time: "Zeit",
  older: "Ältere laden",
  nothing_found: "Keine passende Bestellung.",
  what_happened: "Was geschah",
  by: "von {who}",
  event_new_order: "In die Küche",
  event_order_scheduled: "Geplant",
  event_order_updated: "Geändert",

  welcome: "Bestellungen im Restaurant, in Echtzeit",
  choose_screen: "Anzeige öffnen",
  kitchen_about: "Was zu kochen ist, das Dringendste zuerst",
  pos_about: "Bestellungen an Kasse oder Tisch aufnehmen",
  ready_about: "Nummern für Gäste: in Arbeit, fertig",
  dashboard_about: "Zahlen, Zeiten und jede Bestellung",
  account_about: "Personen und Tablets",
  api_about: "Für Entwickler",
  server_ok: "Der Server läuft und kann Bestellungen speichern.",
  server_down: "Der Server ist nicht erreichbar oder kann nicht speichern.",
  orders_open: "{count} offene Bestellung|{count} offene Bestellungen",
  connected: "{count} verbundene Anzeige|{count} verbundene Anzeigen",
  you_are: "{name} · {role}",
  log_out: "Abmelden",
  username: "Benutzername",
  password: "Passwort",
  password_hint: "Mindestens 8 Zeichen",
  first_account: "Erstes Konto anlegen",
  first_account_about:
    "Es gibt noch kein Konto, darum geht alles ohne Passwort – aber nur auf diesem Rechner. Legen Sie eines an, um Bistro92 für die Tablets in Ihrem Netz zu öffnen.",
  create_account: "Konto anlegen",
  pair_question: "Dieses Gerät als „{name}“ verwenden?",
  pair_about: "Es wird mit der Rolle „{role}“ angemeldet.",
  pair_failed: "Dieser Link gilt nicht mehr. Erstellen Sie unter Konten einen neuen.",
  pair: "Dieses Gerät verwenden",

  people: "Personen",
  people_about: "Jede Person meldet sich mit Name und Passwort an.",
  since: "seit {time}",
  own_mark: "(Sie)",
  change_password: "Passwort ändern",
  old_password: "Bisheriges Passwort",
  new_password: "Neues Passwort",
  password_of: "Passwort von {name}",
  password_changed: "Das Passwort von „{name}“ wurde geändert. Andere Sitzungen sind beendet.",
  wrong_password: "Das bisherige Passwort ist falsch.",
  role: "Rolle",
  role_manager: "Leitung – alles",
  role_pos: "Kasse – nimmt Bestellungen auf und ändert sie",
  role_kitchen: "Küche – kocht",
  role_viewer: "Ansicht – sieht zu",
  account_created: "Das Konto „{name}“ wurde angelegt.",
  devices: "Geräte",
  devices_about: "Ein Tablet wird einmal mit einem Link gekoppelt und braucht dann kein Passwort.",
  device_name: "Name des Geräts",
  expires: "Zugang für",
  expires_30: "30 Tage",
  expires_365: "Ein Jahr",
  expires_never: "Bis zum Entfernen",
  add_device: "Gerät hinzufügen",
  no_devices: "Kein Gerät ist gekoppelt.",
  remove: "Entfernen",
  remove_name: "{name} entfernen",
  remove_question: "„{name}“ entfernen? Es wird sofort abgemeldet.",
  until: "bis {time}",
  link_title: "„{name}“ koppeln",
  link_about: "Mit dem Tablet scannen oder den Link darauf öffnen. Er wird nur jetzt gezeigt; wer ihn hat, hat Zugang.",
  link_local: "Diese Seite wurde mit einer Adresse geöffnet, die nur auf diesem Rechner gilt. Öffnen Sie sie erst mit dem Namen des Rechners im Netz.",
  copy: "Link kopieren",
  copied: "Kopiert.",
  manager_only: "Nur die Leitung kann Konten ändern.",
  first_needed: "Legen Sie das erste Konto auf der Startseite an.",
  failed: "Das ging nicht. {why}",
  no_answer: "Der Server antwortet nicht.",
};

const language = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase()).find((tag) => tag === "de" || tag === "en") ?? "en";
const texts = language === "de" ? de : en;
const locale = navigator.languages.find((tag) => tag.toLowerCase().startsWith(language)) ?? language;

/** Suggestions for a till that has seen no orders yet: name → station. */
export const suggestedItems = /** @type {Record<string, string>} */ (
  Object.assign(
    Object.create(null),
    language === "de"
      ? { Burger: "Grill", Steak: "Grill", Pommes: "Fritteuse", Salat: "Kalt", Suppe: "Herd", Pasta: "Herd", Pizza: "Ofen", Eis: "Dessert", Kaffee: "Bar", Wasser: "Bar", Bier: "Bar", Wein: "Bar" }
      : { Burger: "grill", Steak: "grill", Fries: "fryer", Salad: "cold", Soup: "stove", Pasta: "stove", Pizza: "oven", "Ice Cream": "dessert", Coffee: "bar", Water: "bar", Beer: "bar", Wine: "bar" },
  )
);
export const suggestedTables = Array.from({ length: 12 }, (_, place) => `${texts.table} ${place + 1}`);

/**
 * A text, with what it is about filled in.
 *
 * @param {string} name
 * @param {Record<string, any>} [values]
 * @returns {string}
 */
export function t(name, values = {}) {
  const text = /** @type {Record<string, string>} */ (texts)[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (_, key) => String(values[key] ?? ""));
}

/** A text about a number of things. */
export function plural(/** @type {string} */ name, /** @type {number} */ count) {
  const [one, other] = t(name, { count: count.toLocaleString(locale) }).split("|");
  return new Intl.PluralRules(locale).select(count) === "one" ? one : other;
}

/** Put the texts in the places that the page has for them. */
export function translate(/** @type {Document} */ page) {
  page.documentElement.lang = language;
  for (const element of page.querySelectorAll("[data-text]")) element.textContent = t(element.getAttribute("data-text") ?? "");
  for (const element of page.querySelectorAll("[data-label]")) element.setAttribute("aria-label", t(element.getAttribute("data-label") ?? ""));
  for (const element of page.querySelectorAll("[data-hint]")) element.setAttribute("placeholder", t(element.getAttribute("data-hint") ?? ""));
}

const twoDigits = (/** @type {number} */ number) => String(number).padStart(2, "0");
const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit" });
const dayAndClock = new Intl.DateTimeFormat(locale, { day: "2-digit", month: "2-digit", hour: "2-digit", minute: "2-digit" });
const wholeDay = new Intl.DateTimeFormat(locale, { day: "2-digit", month: "2-digit", year: "numeric" });

export const clockTime = (/** @type {number} */ milliseconds) => clock.format(milliseconds);

/** A time of today, or with its day; of another year, the day. */
export function shortTime(/** @type {string | undefined} */ moment) {
  if (!moment) return "";
  const date = new Date(moment);
  const now = new Date();
  if (date.getFullYear() !== now.getFullYear()) return wholeDay.format(date);
  return (date.toDateString() === now.toDateString() ? clock : dayAndClock).format(date);
}

/** 4:05, or 1 h 04: how long something lasts. */
export function duration(/** @type {number} */ milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}:${twoDigits(seconds % 60)}`;
  return `${Math.floor(minutes / 60)} h ${twoDigits(minutes % 60)}`;
}

/** A moment as a datetime-local field has it. */
export function localInput(/** @type {string} */ moment) {
  const date = new Date(moment);
  const day = [date.getFullYear(), twoDigits(date.getMonth() + 1), twoDigits(date.getDate())].join("-");
  return `${day}T${twoDigits(date.getHours())}:${twoDigits(date.getMinutes())}`;
}
