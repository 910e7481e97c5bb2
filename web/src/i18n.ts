import { createI18n } from 'vue-i18n'
import en from './locales/en'
import zh from './locales/zh'
import type { Locale } from './model'

const LOCALE = 'cimtwin.locale'

export const i18n = createI18n({
  legacy: false,
  locale: (localStorage.getItem(LOCALE) === 'en' ? 'en' : 'zh') as Locale,
  fallbackLocale: 'en',
  messages: { zh, en },
})

export function setLocale(locale: Locale): void {
  i18n.global.locale.value = locale
  localStorage.setItem(LOCALE, locale)
}

/** The service says things as "English / 中文": the half in the page's language, or all of it. */
export function half(text: string, locale: Locale): string {
  const at = text.lastIndexOf(' / ')
  if (at < 0) return text
  return locale === 'en' ? text.slice(0, at) : text.slice(at + 3)
}
